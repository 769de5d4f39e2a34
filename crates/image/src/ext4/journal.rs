//! The journal (JBD2): what a machine that was killed had committed but not yet brought to its place.
//!
//! Nothing is written: the newest copy of each block is noted, and read instead of the old one. Fast
//! commits are not replayed: the file system is then as at its last full commit.
//! Source: `Documentation/filesystems/ext4/journal.rst` and `fs/jbd2/recovery.c` of Linux.

use std::collections::BTreeMap;

use super::blocks::{Blocks, Copy};
use super::inode::Run;
use super::superblock::crc32c;
use super::{FilesError, broken};
use crate::bytes::{array, be32};

/// Reads the journal that lies in `runs`, and says which blocks have newer contents in it.
pub(super) fn replay(blocks: &Blocks, runs: &[Run]) -> Result<BTreeMap<u64, Copy>, FilesError> {
    let start = runs.first().filter(|run| run.first == 0).ok_or_else(|| broken("an empty journal"))?;
    let head = blocks.read(start.block)?;
    let Some(log) = Log::parse(blocks, runs, &head)? else { return Ok(BTreeMap::new()) };
    log.read()
}

/// A journal with changes in it.
struct Log<'a> {
    blocks: &'a Blocks,
    runs: &'a [Run],
    /// The ring of blocks after the journal's superblock.
    first: u64,
    end: u64,
    start: u64,
    sequence: u32,
    features: u32,
    seed: u32,
}

/// What one transaction changes.
#[derive(Default)]
struct Transaction {
    copies: Vec<(u64, Copy)>,
    revoked: Vec<u64>,
}

impl<'a> Log<'a> {
    fn parse(blocks: &'a Blocks, runs: &'a [Run], head: &[u8]) -> Result<Option<Self>, FilesError> {
        let long = |at| be32(head, at).unwrap_or_default();
        if long(0) != MAGIC || !matches!(long(4), 3 | 4) {
            return Err(broken("no superblock in the journal"));
        }
        let features = if long(4) == 4 { long(0x28) } else { 0 };
        if features & !FEATURES != 0 {
            return Err(broken(format!("unknown features {features:#x} of the journal")));
        }
        if u64::from(long(0xc)) != blocks.size() {
            return Err(broken("a journal with another block size"));
        }
        let fast_commit = match long(0x54) {
            _ if features & FAST_COMMIT == 0 => 0,
            0 => FAST_COMMIT_BLOCKS,
            blocks => blocks.into(),
        };
        let uuid: [u8; 16] = array(head, 0x30).unwrap_or_default();
        let log = Self {
            blocks,
            runs,
            first: long(0x14).into(),
            end: u64::from(long(0x10)).saturating_sub(fast_commit),
            start: long(0x1c).into(),
            sequence: long(0x18),
            features,
            seed: crc32c(!0, &[&uuid]),
        };
        if log.start == 0 {
            return Ok(None);
        }
        if log.has_checksums() && !field_matches(head.get(..1024).unwrap_or_default(), 0xfc, !0) {
            return Err(broken("wrong checksum of the journal's superblock"));
        }
        if log.first == 0 || !(log.first..log.end).contains(&log.start) || log.end > LOG_BLOCKS_MAX {
            return Err(broken("a journal that makes no sense"));
        }
        Ok(Some(log))
    }

    /// Reads transactions up to the first that was not committed.
    fn read(&self) -> Result<BTreeMap<u64, Copy>, FilesError> {
        let (mut copies, mut revoked) = (Vec::new(), BTreeMap::new());
        let mut transaction = Transaction::default();
        let (mut at, mut sequence) = (self.start, self.sequence);
        let mut left = self.end - self.first;
        while left > 0 {
            let block = self.blocks.read(self.place(at)?)?;
            let long = |at| be32(&block, at).unwrap_or_default();
            if long(0) != MAGIC || long(8) != sequence {
                break;
            }
            let mut used = 1;
            match long(4) {
                DESCRIPTOR if self.tail_matches(&block) => {
                    used += self.descriptor(&block, at, sequence, left, &mut transaction)?;
                }
                REVOKE if self.tail_matches(&block) => self.revocations(&block, &mut transaction.revoked)?,
                COMMIT if !self.has_checksums() || field_matches(&block, 16, self.seed) => {
                    let done = std::mem::take(&mut transaction);
                    copies.extend(done.copies.into_iter().map(|(block, copy)| (sequence, block, copy)));
                    revoked.extend(done.revoked.into_iter().map(|block| (block, sequence)));
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
            at = self.advance(at, used);
            left = left.saturating_sub(used);
        }
        // A block that was freed must not get back what it held before.
        let is_dead = |block: &u64, sequence: u32| {
            revoked.get(block).is_some_and(|&by: &u32| by.wrapping_sub(sequence).cast_signed() >= 0)
        };
        copies.retain(|(sequence, block, _)| !is_dead(block, *sequence));
        Ok(copies.into_iter().map(|(_, block, copy)| (block, copy)).collect())
    }

    /// Notes the blocks that follow a descriptor; returns how many they are.
    fn descriptor(
        &self,
        block: &[u8],
        at: u64,
        sequence: u32,
        left: u64,
        transaction: &mut Transaction,
    ) -> Result<u64, FilesError> {
        let end = block.len() - if self.has_checksums() { 4 } else { 0 };
        let tag_bytes = self.tag_bytes();
        let (mut tag_at, mut used) = (12, 0);
        while tag_at + tag_bytes <= end && used + 1 < left {
            let tag = Tag::parse(block, tag_at, self.features);
            used += 1;
            self.blocks.charge(1)?;
            let copy = self.place(self.advance(at, used))?;
            if self.has_checksums() {
                let data = self.blocks.read(copy)?;
                let sum = crc32c(self.seed, &[&sequence.to_be_bytes(), &data]);
                let mask = if self.features & CSUM_V3 != 0 { u32::MAX } else { 0xffff };
                if sum & mask != tag.checksum {
                    return Err(broken(format!("wrong checksum of a block in the journal at block {copy}")));
                }
            }
            transaction.copies.push((tag.block, Copy { block: copy, escaped: tag.flags & ESCAPED != 0 }));
            if tag.flags & LAST_TAG != 0 {
                break;
            }
            tag_at += tag_bytes + if tag.flags & SAME_UUID != 0 { 0 } else { 16 };
        }
        Ok(used)
    }

    fn revocations(&self, block: &[u8], revoked: &mut Vec<u64>) -> Result<(), FilesError> {
        let end = usize::try_from(be32(block, 12).unwrap_or_default()).unwrap_or_default();
        let entries = block.get(16..end.min(block.len())).unwrap_or_default();
        self.blocks.charge(entries.len() as u64 / 4)?;
        if self.features & IS_64BIT != 0 {
            revoked.extend(entries.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)));
        } else {
            let narrow = entries.as_chunks::<4>().0;
            revoked.extend(narrow.iter().map(|entry| u64::from(u32::from_be_bytes(*entry))));
        }
        Ok(())
    }

    fn tag_bytes(&self) -> usize {
        if self.features & CSUM_V3 != 0 {
            return 16;
        }
        let checksum = if self.features & CSUM_V2 != 0 { 2 } else { 0 };
        checksum + if self.features & IS_64BIT != 0 { 12 } else { 8 }
    }

    fn has_checksums(&self) -> bool {
        self.features & (CSUM_V2 | CSUM_V3) != 0
    }

    /// Whether the checksum at the end of a descriptor or revocation matches.
    fn tail_matches(&self, block: &[u8]) -> bool {
        !self.has_checksums() || field_matches(block, block.len().saturating_sub(4), self.seed)
    }

    /// The ring's block `by` blocks after `at`.
    fn advance(&self, at: u64, by: u64) -> u64 {
        let next = at + by;
        if next < self.end { next } else { self.first + (next - self.end) % (self.end - self.first) }
    }

    /// Where in the file system a block of the journal lies.
    fn place(&self, at: u64) -> Result<u64, FilesError> {
        let index = self.runs.partition_point(|run| run.first <= at);
        let run = index.checked_sub(1).and_then(|index| self.runs.get(index));
        run.filter(|run| at < run.first + run.count)
            .map(|run| run.block + (at - run.first))
            .ok_or_else(|| broken("a hole in the journal"))
    }
}

/// One entry of a descriptor: where a block belongs.
struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
}

impl Tag {
    fn parse(bytes: &[u8], at: usize, features: u32) -> Self {
        let long = |at| be32(bytes, at).unwrap_or_default();
        let high = if features & IS_64BIT != 0 { u64::from(long(at + 8)) << 32 } else { 0 };
        let block = high | u64::from(long(at));
        if features & CSUM_V3 != 0 {
            return Self { block, flags: long(at + 4), checksum: long(at + 12) };
        }
        Self { block, flags: long(at + 4) & 0xffff, checksum: long(at + 4) >> 16 }
    }
}

/// Whether the big-endian checksum at `at` is that of all bytes with itself cleared.
fn field_matches(bytes: &[u8], at: usize, seed: u32) -> bool {
    let before = bytes.get(..at).unwrap_or_default();
    let after = bytes.get(at + 4..).unwrap_or_default();
    be32(bytes, at) == Some(crc32c(seed, &[before, &[0; 4], after]))
}

/// Starts every block of the journal's own.
pub(super) const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST_TAG: u32 = 8;
const IS_64BIT: u32 = 0x2;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
/// Revocations, 64-bit numbers, asynchronous commits, both kinds of checksums, fast commits.
const FEATURES: u32 = 0x3f;
/// How many blocks fast commits have where the journal does not say.
const FAST_COMMIT_BLOCKS: u64 = 256;
/// 40 GiB in blocks of 4 KiB is the largest journal that `mke2fs` makes.
const LOG_BLOCKS_MAX: u64 = 10_240_000;
