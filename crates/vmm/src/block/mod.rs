//! What stands behind virtio-block: a raw file by io_uring, anything else by a few threads.

mod image;
mod ring;
#[cfg(test)]
mod tests;
mod uring;

use std::{fs::File, io};

use ec2vmm_devices::virtio::block::Backend;
use ec2vmm_image::{Disk, DiskError, Format, Layer};

pub use self::{
    image::ImageBackend,
    ring::{ENTRIES, Rings, SPARE},
    uring::UringBackend,
};

/// Why a disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The files are no disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host is out of descriptors, threads or memory.
    #[error("cannot start to serve the disk")]
    Start(#[source] io::Error),
}

/// A disk, open: to be read by this process at boot, and to be given to a device.
pub struct OpenDisk {
    /// The same content as the device's, past every cache of ours.
    pub disk: Disk,
    /// For the device.
    pub backend: Box<dyn Backend>,
    /// The file, where the disk is one raw file.
    pub raw: Option<File>,
    /// Its files once more, to look at.
    pub layers: Vec<Layer>,
}

/// What becomes of what the guest writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// It is refused.
    ReadOnly,
    /// What the guest has flushed survives whatever happens.
    Kept,
    /// It is gone when the machine ends.
    Scratch,
}

/// Opens a disk from its files, the top one first, with the fastest engine that there is for it: one of
/// `rings` for one raw file of whole sectors, else threads.
///
/// # Errors
/// The files are no disk, or the host is out of something.
pub fn open(layers: Vec<Layer>, access: Access, rings: &Rings) -> Result<OpenDisk, OpenError> {
    let raw = match layers.as_slice() {
        [Layer { file, format: Format::Raw }] => Some(file.try_clone().map_err(OpenError::Start)?),
        _ => None,
    };
    let look = |layer: &Layer| Ok(Layer { file: layer.file.try_clone()?, format: layer.format });
    let kept = layers.iter().map(look).collect::<io::Result<_>>().map_err(OpenError::Start)?;
    let disk = match access {
        Access::ReadOnly => Disk::open(layers, false)?,
        Access::Kept => Disk::open(layers, true)?,
        Access::Scratch => Disk::open_scratch(layers)?,
    };
    let whole = disk.layers().first().is_some_and(|layer| layer.file_bytes == disk.size());
    let backend: Box<dyn Backend> =
        match raw.as_ref().filter(|_| whole).and_then(|file| by_uring(file, &disk, rings)) {
            Some(backend) => Box::new(backend),
            None => Box::new(ImageBackend::new(disk.clone()).map_err(OpenError::Start)?),
        };
    Ok(OpenDisk { disk, backend, raw, layers: kept })
}

/// None where there is no ring, or none for this file.
fn by_uring(file: &File, disk: &Disk, rings: &Rings) -> Option<UringBackend> {
    let lent = rings.lend(file).inspect_err(|error| log::warn!("giving a disk's file to a ring: {error}"));
    lent.ok().flatten().map(|ring| UringBackend::new(ring, disk.clone()))
}
