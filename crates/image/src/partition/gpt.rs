//! GUID partition tables, by the `gpt` crate.
//!
//! The crate trusts the number and the size of the entries; so both are checked between its reading of
//! the header and its reading of the entries.

use std::io::{self, Read, Seek, SeekFrom};

use gpt::disk::LogicalBlockSize;
use gpt::header::{Header, HeaderError, read_header_from_arbitrary_device};
use gpt::partition::file_read_partitions;

use super::{Partition, Table, TableError, TableKind};
use crate::disk::SECTOR;
use crate::window::Window;

/// What is wrong with one copy of the table.
#[derive(Debug, thiserror::Error)]
pub enum HeaderFault {
    /// The signature `EFI PART` is not there.
    #[error("no header")]
    Missing,
    /// The header does not match its checksum.
    #[error("wrong checksum of the header")]
    HeaderChecksum,
    /// The entries do not match their checksum.
    #[error("wrong checksum of the entries")]
    EntriesChecksum,
    /// The header asks for something that makes no sense.
    #[error("{0}")]
    Layout(&'static str),
    /// The disk cannot be read.
    #[error("unreadable: {0}")]
    Io(io::Error),
}

/// Reads the first copy, or else the second.
pub(super) fn read(disk: &Window) -> Result<Table, TableError> {
    let backup_sector = (disk.size() / SECTOR).saturating_sub(1);
    let (entries, notes) = match read_copy(disk, 1) {
        Ok(entries) => (entries, Vec::new()),
        Err(primary) => match read_copy(disk, backup_sector) {
            Ok(entries) => {
                let note = format!("the first copy of the GPT is broken ({primary}): the second was used");
                (entries, vec![note])
            }
            Err(_) if has_large_sectors(disk) => return Err(TableError::SectorSize),
            Err(backup) => return Err(TableError::Gpt { primary, backup, backup_sector }),
        },
    };
    let mut partitions = Vec::with_capacity(entries.len());
    for (number, entry) in entries {
        if !entry.is_used() {
            continue;
        }
        let (Ok(start), Ok(size)) =
            (entry.bytes_start(LogicalBlockSize::Lb512), entry.bytes_len(LogicalBlockSize::Lb512))
        else {
            return Err(TableError::Backwards { number });
        };
        partitions.push(Partition {
            number,
            start,
            size,
            role: role(&entry.part_type_guid.guid.to_string()),
            name: Some(entry.name).filter(|name| !name.is_empty()),
            partuuid: Some(entry.part_guid.to_string()),
        });
    }
    Ok(Table { kind: TableKind::Gpt, partitions, notes })
}

type Entries = std::collections::BTreeMap<u32, gpt::partition::Partition>;

/// Reads the copy whose header lies in `sector`.
fn read_copy(disk: &Window, sector: u64) -> Result<Entries, HeaderFault> {
    // The crate looks in sector 1 of what it is given.
    let origin = sector.saturating_sub(1) * SECTOR;
    let mut reader = Reader { disk, origin, at: 0 };
    let header = read_header_from_arbitrary_device(&mut reader, LogicalBlockSize::Lb512)?;
    check(&header, sector)?;
    let mut reader = Reader { disk, origin: 0, at: 0 };
    file_read_partitions(&mut reader, &header, LogicalBlockSize::Lb512).map_err(|error| {
        match error.kind() {
            // The crate's own word for a checksum that does not match.
            io::ErrorKind::Other
                if error.get_ref().is_some_and(|inner| inner.to_string().contains("CRC")) =>
            {
                HeaderFault::EntriesChecksum
            }
            _ => HeaderFault::Io(error),
        }
    })
}

fn check(header: &Header, sector: u64) -> Result<(), HeaderFault> {
    if header.current_lba != sector {
        return Err(HeaderFault::Layout("the header belongs to another sector"));
    }
    if header.part_size != ENTRY_BYTES {
        return Err(HeaderFault::Layout("the entries are not of 128 bytes"));
    }
    if header.num_parts > ENTRIES_MAX {
        return Err(HeaderFault::Layout("too many entries"));
    }
    if header.part_start < 2 || header.part_start > u64::MAX / SECTOR / 2 {
        return Err(HeaderFault::Layout("the entries are nowhere on the disk"));
    }
    Ok(())
}

/// A GPT header where sector 1 is on disks with sectors of 4096 bytes.
fn has_large_sectors(disk: &Window) -> bool {
    disk.read_vec(4096, 8).is_ok_and(|bytes| bytes == b"EFI PART")
}

fn role(guid: &str) -> String {
    let known = match guid {
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => "EFI system",
        "21686148-6449-6e6f-744e-656564454649" => "BIOS boot",
        "0fc63daf-8483-4772-8e79-3d69d8477de4" => "Linux file system",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => "Linux root (x86-64)",
        "b921b045-1df0-41c3-af44-4c6f280d3fae" => "Linux root (arm64)",
        "bc13c2ff-59e6-4262-a352-b275fd6f7172" => "Linux extended boot",
        "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" => "Linux swap",
        "e6d6d379-f507-44c2-a23c-238f2a3df928" => "Linux LVM",
        "933ac7e1-2eb4-4f13-b844-0e14e2aef915" => "Linux home",
        "9e1a2d38-c612-4316-aa26-8b49521e5a8b" => "PowerPC PReP boot",
        "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7" => "Microsoft basic data",
        other => other,
    };
    known.to_owned()
}

impl From<HeaderError> for HeaderFault {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Io(error) => Self::Io(error),
            HeaderError::InvalidGptSignature => Self::Missing,
            HeaderError::InvalidCRC32Checksum => Self::HeaderChecksum,
            _ => Self::Layout("the header makes no sense"),
        }
    }
}

/// A window as the crate wants it.
struct Reader<'a> {
    disk: &'a Window,
    origin: u64,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let offset = self.origin.saturating_add(self.at);
        let left = usize::try_from(self.disk.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = left.min(buffer.len());
        if let Some(buffer) = buffer.get_mut(..len) {
            self.disk.read_at(buffer, offset)?;
        }
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.disk.size().saturating_sub(self.origin).checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

/// The specification's size; the crate knows no other.
const ENTRY_BYTES: u32 = 128;
/// Eight times what partitioning tools make.
const ENTRIES_MAX: u32 = 1024;
