//! How a disk is divided: GPT, MBR, or not at all.
//!
//! Sectors are 512 bytes, as the machine's disks have them.

mod gpt;
mod mbr;

use std::io;

use serde::Serialize;

use crate::disk::{Disk, SECTOR};
use crate::error::ErrorKind;
use crate::filesystem;
use crate::window::{Budget, Window};

pub use gpt::HeaderFault;

/// A disk's partitions.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Table {
    /// What kind of table it is.
    pub kind: TableKind,
    /// The partitions, by number. A bare file system is one partition with the number 0.
    pub partitions: Vec<Partition>,
    /// What is odd but did not stop us, as one line each.
    pub notes: Vec<String>,
}

/// What kind of partition table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// GUID partition table (UEFI 2.10, section 5.3).
    Gpt,
    /// Master boot record, with logical partitions.
    Mbr,
    /// None: a file system fills the disk.
    None,
}

/// A part of the disk.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Partition {
    /// The number that Linux and GRUB give it, from 1; 0 is the whole disk.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// What it is for, by its type code or type GUID.
    pub role: String,
    /// Its name in the table, if it has one.
    pub name: Option<String>,
    /// What Linux calls `PARTUUID`.
    pub partuuid: Option<String>,
}

/// Why the partitions cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The disk cannot be read.
    #[error("cannot read the partition table")]
    Io(#[source] io::Error),
    /// Nothing known is on the disk.
    #[error("neither a partition table nor a known file system is on the disk")]
    Unknown {
        /// What the bytes look like, if they look like something.
        looks_like: Option<&'static str>,
    },
    /// Both copies of the GPT are broken.
    #[error("both copies of the GPT are broken: {primary} (sector 1), {backup} (sector {backup_sector})")]
    Gpt {
        /// What is wrong with the first copy.
        primary: HeaderFault,
        /// What is wrong with the second copy.
        backup: HeaderFault,
        /// Where the second copy should be.
        backup_sector: u64,
    },
    /// The table was made for sectors of 4096 bytes.
    #[error("the GPT was made for sectors of 4096 bytes: only 512 are supported")]
    SectorSize,
    /// A partition is not within the disk.
    #[error("partition {number} (bytes {start} to {end}) reaches beyond the disk's {disk} bytes")]
    Beyond {
        /// Which partition.
        number: u32,
        /// Its first byte.
        start: u64,
        /// The byte after its last.
        end: u64,
        /// Size of the disk.
        disk: u64,
    },
    /// A partition ends before it starts.
    #[error("partition {number} ends before it starts")]
    Backwards {
        /// Which partition.
        number: u32,
    },
    /// The chain of logical partitions does not end.
    #[error("the chain of logical partitions loops at sector {sector}")]
    Loop {
        /// Where it comes back to.
        sector: u64,
    },
    /// A link in the chain of logical partitions is broken.
    #[error("the chain of logical partitions is broken at sector {sector}")]
    Chain {
        /// Which link.
        sector: u64,
    },
}

impl TableError {
    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io(_) => ErrorKind::Io,
            Self::Unknown { .. } => ErrorKind::NotADisk,
            _ => ErrorKind::BrokenPartitionTable,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unknown { looks_like: Some("qcow2") } => {
                "the file starts like a qcow2 file: say `--format qcow2`, or name it *.qcow2".to_owned()
            }
            Self::Unknown { looks_like: Some(other) } => {
                format!("the file looks like {other}: unpack or convert it to a raw or qcow2 disk")
            }
            Self::Gpt { .. } => {
                "restore it with `sgdisk` or `gdisk` (recovery menu), or fetch the file again".to_owned()
            }
            Self::Beyond { .. } => "the copy or download is incomplete: fetch the file again".to_owned(),
            Self::SectorSize => "make the image with sectors of 512 bytes".to_owned(),
            _ => return None,
        };
        Some(hint)
    }
}

/// Reads the partition table of `disk`.
///
/// # Errors
/// There is none and no file system either, or it is broken. A GPT of which one copy is whole is not.
pub fn read_table(disk: &Disk) -> Result<Table, TableError> {
    let budget = Budget::new();
    let whole = Window::new(disk, 0, disk.size(), &budget);
    let first = whole.read_vec(0, 512).map_err(TableError::Io)?;
    let table = match mbr::read(&first) {
        Some(entries) if entries.iter().any(mbr::Entry::is_protective) => gpt::read(&whole)?,
        Some(entries) if entries.iter().any(|entry| entry.is_sane(disk.size() / SECTOR)) => {
            mbr::table(&whole, &first, &entries)?
        }
        _ => bare(&whole, &first)?,
    };
    for Partition { number, start, size, .. } in &table.partitions {
        let end = start.saturating_add(*size);
        if end > disk.size() {
            return Err(TableError::Beyond { number: *number, start: *start, end, disk: disk.size() });
        }
    }
    Ok(table)
}

/// A file system without a partition table around it.
fn bare(whole: &Window, first: &[u8]) -> Result<Table, TableError> {
    if filesystem::recognise(whole).map_err(TableError::Io)?.is_none() {
        return Err(TableError::Unknown { looks_like: looks_like(first) });
    }
    let role = "whole disk".to_owned();
    let partition = Partition { number: 0, start: 0, size: whole.size(), role, name: None, partuuid: None };
    Ok(Table { kind: TableKind::None, partitions: vec![partition], notes: Vec::new() })
}

/// What people take for a disk by mistake.
fn looks_like(first: &[u8]) -> Option<&'static str> {
    let magics: [(&[u8], &str); 9] = [
        (&crate::qcow2::MAGIC, "qcow2"),
        (b"\x1f\x8b", "a gzip file"),
        (b"\xfd7zXZ", "an xz file"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"PK\x03\x04", "a zip file"),
        (b"KDMV", "a VMDK disk"),
        (b"# Disk DescriptorFile", "a VMDK descriptor"),
        (b"vhdxfile", "a VHDX disk"),
        (b"\x7fELF", "a program"),
    ];
    magics.into_iter().find(|(magic, _)| first.starts_with(magic)).map(|(_, name)| name)
}
