//! Disks and network interfaces out of descriptors: at the machine's birth, and while it runs.

use std::os::fd::OwnedFd;

use ec2vmm_devices::virtio::block::{Block, Options};
use ec2vmm_image as image;
use ec2vmm_vmm_api::{
    config::{self, Format, RateLimit},
    control::NetLimits,
};
use rustix::fs::{FileType, OFlags};

use crate::{
    block::{self, Access, OpenDisk, Rings},
    error::MachineError,
    net,
    rate_limits::limiter,
    slots::{DiskPart, Part, Slot},
};

/// What is known of a disk before its files are opened.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// What the guest reads.
    pub serial: String,
    /// What becomes of what the guest writes.
    pub access: Access,
    /// The kernel is read from it.
    pub boots: bool,
    /// How many queues the guest can use.
    pub queues: u16,
    /// Limits all requests together.
    pub rate_limit: RateLimit,
}

/// How many queues a disk has where nothing is said.
pub fn queues_usual(cpus: u8) -> u16 {
    config::QUEUES_USUAL_MAX.min(cpus.into())
}

/// Why a descriptor is not one for a disk's file.
#[derive(Debug, thiserror::Error)]
pub enum NoFileError {
    /// It is a socket, pipe, folder or the like.
    #[error("it is no file")]
    Kind,
    /// It cannot be read.
    #[error("it is not open for reading")]
    NotReadable,
    /// It cannot be written, and shall be.
    #[error("it is open for reading only")]
    NotWritable,
    /// The system says nothing of it.
    #[error("it cannot be looked at")]
    System(#[from] rustix::io::Errno),
}

/// Refuses a descriptor that is no file, or not open as a disk with this access needs it.
///
/// # Errors
/// What is wrong with it.
pub fn check_file(file: &OwnedFd, write: bool) -> Result<(), NoFileError> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
        return Err(NoFileError::Kind);
    }
    let flags = rustix::fs::fcntl_getfl(file)?;
    match flags & OFlags::ACCMODE {
        _ if flags.contains(OFlags::PATH) => Err(NoFileError::NotReadable),
        OFlags::WRONLY => Err(NoFileError::NotReadable),
        OFlags::RDWR => Ok(()),
        _ if write => Err(NoFileError::NotWritable),
        _ => Ok(()),
    }
}

/// Opens a disk from its files, the top one first, to be served by one of `rings` if it can be.
///
/// # Errors
/// The files are no disk.
pub fn open_disk(
    files: Vec<OwnedFd>,
    formats: impl IntoIterator<Item = Format>,
    access: Access,
    rings: &Rings,
) -> Result<OpenDisk, block::OpenError> {
    let layers = files.into_iter().zip(formats);
    let layers = layers.map(|(file, format)| image::Layer { file: file.into(), format: format_of(format) });
    block::open(layers.collect(), access, rings)
}

fn format_of(format: Format) -> image::Format {
    match format {
        Format::Raw => image::Format::Raw,
        Format::Qcow2 => image::Format::Qcow2,
    }
}

/// A disk for the place `pci_device`.
///
/// # Errors
/// The serial number is too long, or the host is out of descriptors.
pub fn disk(name: String, pci_device: u8, spec: DiskSpec, open: OpenDisk) -> Result<Slot, MachineError> {
    let OpenDisk { disk, backend, raw, layers } = open;
    let DiskSpec { serial, access, boots, queues, rate_limit } = spec;
    let read_only = access == Access::ReadOnly;
    let options = Options { serial: serial.clone(), read_only, queues };
    let limiter = limiter(rate_limit).map_err(MachineError::system("making a timer"))?;
    let device =
        Block::new(backend, &options, limiter).map_err(|error| MachineError::Config(error.to_string()))?;
    let part = Part::Disk(DiskPart { disk, serial, raw, layers, read_only, boots, rate_limit });
    Slot::new(name, pci_device, part, Box::new(device)).map_err(MachineError::system("making a doorbell"))
}

/// A network interface on a tap, open once for each pair of queues, for the place `pci_device`.
///
/// # Errors
/// It is no tap, or not one made as is needed; or the host is out of descriptors.
pub fn net(
    name: String,
    pci_device: u8,
    taps: Vec<OwnedFd>,
    config: &config::Net,
) -> Result<Slot, MachineError> {
    let device = net::device(taps, config).map_err(MachineError::system("making a network device"))?;
    let limits = NetLimits { receive: config.receive_limit, transmit: config.transmit_limit };
    let part = Part::Net { mac: config.mac, limits };
    Slot::new(name, pci_device, part, device).map_err(MachineError::system("making a doorbell"))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::net::UnixStream};

    use super::{NoFileError, check_file};

    #[test]
    fn only_files_that_are_open_as_needed_are_for_disks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = |options: &mut std::fs::OpenOptions| options.open(file.path()).unwrap().into();
        let both = open(File::options().read(true).write(true));
        let read = open(File::options().read(true));
        let write = open(File::options().write(true));
        assert!(check_file(&both, true).is_ok() && check_file(&both, false).is_ok());
        assert!(check_file(&read, false).is_ok());
        assert!(matches!(check_file(&read, true), Err(NoFileError::NotWritable)));
        assert!(matches!(check_file(&write, true), Err(NoFileError::NotReadable)));
        let (socket, _other) = UnixStream::pair().unwrap();
        assert!(matches!(check_file(&socket.into(), true), Err(NoFileError::Kind)));
        let folder = File::open("/").unwrap();
        assert!(matches!(check_file(&folder.into(), false), Err(NoFileError::Kind)));
        let path =
            rustix::fs::open(file.path(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        assert!(matches!(check_file(&path, false), Err(NoFileError::NotReadable)));
    }
}
