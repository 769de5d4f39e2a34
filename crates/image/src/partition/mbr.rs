//! Master boot records, and the chain of logical partitions in an extended one.

use super::{Partition, Table, TableError, TableKind};
use crate::bytes::{array, le32};
use crate::disk::SECTOR;
use crate::window::Window;

/// One of a boot record's four entries; sectors count from the start of the disk or of whatever holds
/// the record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    flag: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    /// Says that the disk has a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.kind == 0xee
    }

    /// Whether this can be a partition of a disk with so many sectors. A boot sector of a file system
    /// ends with the same signature and has other things in this place.
    pub(super) fn is_sane(&self, disk_sectors: u64) -> bool {
        self.is_used() && matches!(self.flag, 0 | 0x80) && self.start > 0 && self.start < disk_sectors
    }

    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors > 0
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn partition(&self, number: u32, base: u64, disk_id: u32) -> Partition {
        Partition {
            number,
            start: (base + self.start) * SECTOR,
            size: self.sectors * SECTOR,
            role: self.role(),
            name: None,
            partuuid: Some(format!("{disk_id:08x}-{number:02x}")),
        }
    }

    fn role(&self) -> String {
        let known = match self.kind {
            0x05 | 0x0f | 0x85 => "extended",
            0x01 | 0x04 | 0x06 | 0x0b | 0x0c | 0x0e => "FAT",
            0x07 => "NTFS or exFAT",
            0x82 => "Linux swap",
            0x83 => "Linux file system",
            0x8e => "Linux LVM",
            0xef => "EFI system",
            0xfd => "Linux RAID",
            kind => return format!("type {kind:#04x}"),
        };
        known.to_owned()
    }
}

/// The four entries of a boot record, if the sector is one.
pub(super) fn read(sector: &[u8]) -> Option<[Entry; 4]> {
    if array::<2>(sector, 510)? != [0x55, 0xaa] {
        return None;
    }
    let entry = |index: usize| {
        let at = 446 + 16 * index;
        Some(Entry {
            flag: *sector.get(at)?,
            kind: *sector.get(at + 4)?,
            start: le32(sector, at + 8)?.into(),
            sectors: le32(sector, at + 12)?.into(),
        })
    };
    Some([entry(0)?, entry(1)?, entry(2)?, entry(3)?])
}

/// The partitions: primary ones and those in the first extended one.
pub(super) fn table(disk: &Window, first: &[u8], entries: &[Entry; 4]) -> Result<Table, TableError> {
    let disk_id = le32(first, 440).unwrap_or_default();
    let mut partitions = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(entries).filter(|(_, entry)| entry.is_used()) {
        if entry.is_extended() {
            extended = extended.or(Some(*entry));
        }
        partitions.push(entry.partition(number, 0, disk_id));
    }
    if let Some(extended) = extended {
        logical(disk, extended.start, disk_id, &mut partitions)?;
    }
    Ok(Table { kind: TableKind::Mbr, partitions, notes: Vec::new() })
}

/// Follows the chain: each link names one partition, relative to itself, and the next link, relative to
/// the extended partition.
fn logical(disk: &Window, base: u64, disk_id: u32, found: &mut Vec<Partition>) -> Result<(), TableError> {
    let mut seen = Vec::new();
    let mut link = base;
    for number in 5.. {
        if seen.contains(&link) || seen.len() == LOGICAL_MAX {
            return Err(TableError::Loop { sector: link });
        }
        seen.push(link);
        let chain = TableError::Chain { sector: link };
        if (link + 1) * SECTOR > disk.size() {
            return Err(chain);
        }
        let sector = disk.read_vec(link * SECTOR, 512).map_err(TableError::Io)?;
        let Some([entry, next, ..]) = read(&sector) else { return Err(chain) };
        if entry.is_used() {
            found.push(entry.partition(number, link, disk_id));
        }
        if !next.is_used() {
            break;
        }
        link = base + next.start;
    }
    Ok(())
}

/// Linux gives out no more numbers than this for one disk.
const LOGICAL_MAX: usize = 128;
