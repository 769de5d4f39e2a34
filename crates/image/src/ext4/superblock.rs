//! The superblock: how an ext4 file system is laid out.

use crc::{CRC_32_ISCSI, Crc};

use super::FilesError;
use crate::bytes::{array, le16, le32};

/// What of the superblock reading files needs.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    pub(super) block_size: u64,
    pub(super) blocks: u64,
    pub(super) inodes: u32,
    pub(super) inodes_per_group: u32,
    pub(super) inode_size: u64,
    pub(super) journal_inode: u32,
    first_data_block: u64,
    blocks_per_group: u64,
    descriptor_size: u64,
    first_meta_group: Option<u64>,
    sparse_super: bool,
    /// Seed of all checksums of metadata, if it has any.
    checksum_seed: Option<u32>,
    incompatible: u32,
    has_journal: bool,
}

impl Superblock {
    /// Reads the 1024 bytes of a superblock of a file system on a partition of `partition` bytes.
    pub(super) fn parse(bytes: &[u8], partition: u64) -> Result<Self, FilesError> {
        let long = |at| le32(bytes, at).unwrap_or_default();
        let short = |at| le16(bytes, at).unwrap_or_default();
        if short(0x38) != 0xef53 {
            return Err(broken("no magic number in the superblock"));
        }
        let (compatible, incompatible, read_only) = (long(0x5c), long(0x60), long(0x64));
        if incompatible & !SUPPORTED != 0 {
            return Err(FilesError::Unsupported(incompatible & !SUPPORTED));
        }
        let has_checksums = read_only & METADATA_CSUM != 0;
        let sum = bytes.get(..0x3fc).map(|bytes| crc32c(!0, &[bytes]));
        if has_checksums && sum != Some(long(0x3fc)) {
            return Err(broken("wrong checksum of the superblock"));
        }
        let log_block_size = long(0x18);
        if log_block_size > 6 {
            return Err(broken("a block size that does not exist"));
        }
        let block_size = 1024u64 << log_block_size;
        let is_64bit = incompatible & IS_64BIT != 0;
        let high = if is_64bit { u64::from(long(0x150)) << 32 } else { 0 };
        let uuid: [u8; 16] = array(bytes, 0x68).unwrap_or_default();
        let seed = if incompatible & CSUM_SEED != 0 { long(0x270) } else { crc32c(!0, &[&uuid]) };
        let superblock = Self {
            block_size,
            blocks: high | u64::from(long(0x4)),
            inodes: long(0),
            inodes_per_group: long(0x28),
            // Revision 0 knew only one size.
            inode_size: if long(0x4c) == 0 { 128 } else { short(0x58).into() },
            journal_inode: long(0xe0),
            first_data_block: long(0x14).into(),
            blocks_per_group: long(0x20).into(),
            descriptor_size: if is_64bit { short(0xfe).into() } else { 32 },
            first_meta_group: (incompatible & META_BG != 0).then(|| long(0x104).into()),
            sparse_super: read_only & SPARSE_SUPER != 0,
            checksum_seed: has_checksums.then_some(seed),
            incompatible,
            has_journal: compatible & HAS_JOURNAL != 0,
        };
        superblock.check(partition)?;
        Ok(superblock)
    }

    fn check(&self, partition: u64) -> Result<(), FilesError> {
        let wrong = [
            (self.blocks_per_group == 0, "no blocks in a group"),
            (self.inodes_per_group == 0, "no inodes in a group"),
            (!self.inode_size.is_power_of_two(), "an odd size of inodes"),
            (!(128..=self.block_size).contains(&self.inode_size), "a size of inodes out of range"),
            (
                !(32..=self.block_size).contains(&self.descriptor_size),
                "a size of group descriptors out of range",
            ),
            (self.first_data_block > 1, "a first block that is not the first"),
        ];
        if let Some((_, what)) = wrong.into_iter().find(|(wrong, _)| *wrong) {
            return Err(broken(what));
        }
        match self.blocks.checked_mul(self.block_size) {
            Some(bytes) if bytes <= partition => Ok(()),
            bytes => Err(FilesError::Truncated { bytes: bytes.unwrap_or(u64::MAX), partition }),
        }
    }

    /// Whether changes wait in the journal.
    pub(super) fn needs_recovery(&self) -> bool {
        self.has_journal && self.incompatible & RECOVER != 0
    }

    /// Where on the disk the descriptor of block group `group` lies, byte.
    pub(super) fn descriptor_at(&self, group: u64) -> Option<u64> {
        let per_block = self.block_size / self.descriptor_size;
        let (table_block, within) = (group / per_block, group % per_block);
        let block = match self.first_meta_group {
            Some(first) if table_block >= first => {
                // The group's own part of the table, in the first group that it describes.
                let home = table_block * per_block;
                let start = self.first_data_block.checked_add(home.checked_mul(self.blocks_per_group)?)?;
                start + u64::from(self.has_superblock(home))
            }
            _ => self.first_data_block + 1 + table_block,
        };
        block.checked_mul(self.block_size)?.checked_add(within * self.descriptor_size)
    }

    /// Whether the descriptors have the upper halves of block numbers.
    pub(super) fn has_wide_descriptors(&self) -> bool {
        self.descriptor_size >= 64
    }

    /// Whether a copy of the superblock starts the group.
    fn has_superblock(&self, group: u64) -> bool {
        let is_power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        !self.sparse_super || group <= 1 || [3, 5, 7].into_iter().any(is_power_of)
    }

    /// The checksum of a piece of metadata, if the file system has checksums.
    pub(super) fn checksum(&self, parts: &[&[u8]]) -> Option<u32> {
        self.checksum_seed.map(|seed| crc32c(seed, parts))
    }
}

/// CRC-32C as Linux computes it: started with `seed` and not inverted at the end.
pub(super) fn crc32c(seed: u32, parts: &[&[u8]]) -> u32 {
    static CRC: Crc<u32, crc::Table<16>> = Crc::<u32, crc::Table<16>>::new(&CRC_32_ISCSI);
    let mut digest = CRC.digest_with_initial(seed.reverse_bits());
    for part in parts {
        digest.update(part);
    }
    !digest.finalize()
}

fn broken(what: &str) -> FilesError {
    FilesError::Broken(what.to_owned())
}

/// Where the superblock lies, and its size, bytes.
pub(super) const SUPERBLOCK_AT: u64 = 1024;
pub(super) const SUPERBLOCK_BYTES: usize = 1024;

const HAS_JOURNAL: u32 = 0x4;
const SPARSE_SUPER: u32 = 0x1;
const METADATA_CSUM: u32 = 0x400;
const RECOVER: u32 = 0x4;
const META_BG: u32 = 0x10;
const IS_64BIT: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
/// filetype, recover, `meta_bg`, extents, 64bit, mmp, `flex_bg`, `ea_inode`, `csum_seed`, largedir,
/// `inline_data`, encrypt, casefold: what changes nothing that we read, or is checked at each inode.
const SUPPORTED: u32 =
    0x2 | RECOVER | META_BG | 0x40 | IS_64BIT | 0x100 | 0x200 | 0x400 | CSUM_SEED | 0x3c000;
