//! All that can be said of a disk without booting it.

use serde::Serialize;

use crate::boot::volumes::Volumes;
use crate::boot::{self, BootError, Entry, Kernel};
use crate::disk::{Disk, LayerFacts};
use crate::filesystem::Filesystem;
use crate::partition::{self, Partition, TableKind};

/// What is on a disk. As JSON its fields have the names that they have here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Size of the disk, bytes.
    pub size: u64,
    /// Its files, the top one first.
    pub layers: Vec<LayerFacts>,
    /// What kind of partition table it has: `gpt`, `mbr`, or `none` for a bare file system.
    pub table: TableKind,
    /// Its partitions, by number. A bare file system is one with the number 0.
    pub partitions: Vec<Volume>,
    /// What is odd but does not matter, one line each.
    pub notes: Vec<String>,
    /// What it boots.
    pub boot: Option<BootSummary>,
    /// Why it boots nothing, as one line, if it does not.
    pub boot_error: Option<String>,
}

/// A partition and what is on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Volume {
    /// Where it lies: `number`, `start`, `size`, `role`, `name`, `partuuid`.
    #[serde(flatten)]
    pub partition: Partition,
    /// What it holds: `kind`, `label`, `uuid`; nothing if that is unknown.
    pub filesystem: Option<Filesystem>,
    /// Why its files cannot be read, if they should be readable.
    pub fault: Option<String>,
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BootSummary {
    /// `title`, `loader`, `source`, `kernel`, `initrds`, `cmdline`.
    pub entry: Entry,
    /// `format`, `architecture`, `release`.
    pub kernel: Kernel,
    /// Size of the initial RAM disk in guest memory, bytes.
    pub initrd_size: u64,
}

/// Looks at `disk`. A disk that cannot be booted is no error: [`Inspection::boot_error`] says why.
///
/// # Errors
/// The partition table is broken, there is nothing known on the disk, or the disk cannot be read.
pub fn inspect(disk: &Disk) -> Result<Inspection, BootError> {
    let table = partition::read_table(disk)?;
    let volumes = Volumes::open(disk, &table).map_err(BootError::Io)?;
    let partitions = volumes.iter().map(|volume| Volume {
        partition: volume.partition.clone(),
        filesystem: volume.filesystem.clone(),
        fault: volume.fault().map(ToString::to_string),
    });
    let partitions = partitions.collect();
    let (boot, boot_error) = match boot::find_in(volumes) {
        Ok(boot) => {
            let initrd_size = boot.initrd_size();
            (Some(BootSummary { entry: boot.entry, kernel: boot.kernel, initrd_size }), None)
        }
        Err(error) => (None, Some(with_causes(&error))),
    };
    Ok(Inspection {
        size: disk.size(),
        layers: disk.layers().to_vec(),
        table: table.kind,
        partitions,
        notes: table.notes,
        boot,
        boot_error,
    })
}

/// The error and its causes on one line.
fn with_causes(error: &BootError) -> String {
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
