//! Inodes: what a file is, how long it is, and in which blocks it lies.

use super::blocks::Blocks;
use super::superblock::Superblock;
use super::{FilesError, broken};
use crate::bytes::{array, le16, le32};

/// One inode.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) size: u64,
    number: u32,
    generation: u32,
    flags: u32,
    /// The root of the extent tree, the first block numbers, or a short link's target.
    root: [u8; 60],
}

/// What an inode is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    File,
    Folder,
    Link,
    Other,
}

/// Blocks of a file that lie one after the other. Blocks between runs are holes: zeros.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Run {
    /// The first block, counted within the file.
    pub(super) first: u64,
    /// Where it lies in the file system.
    pub(super) block: u64,
    /// How many blocks.
    pub(super) count: u64,
}

impl Inode {
    pub(super) fn read(blocks: &Blocks, superblock: &Superblock, number: u32) -> Result<Self, FilesError> {
        let index = number.checked_sub(1).filter(|_| number <= superblock.inodes);
        let index = index.ok_or_else(|| broken(format!("inode {number} does not exist")))?;
        let at = inode_at(blocks, superblock, index)?
            .ok_or_else(|| broken(format!("inode {number} lies nowhere")))?;
        let mut bytes = vec![0; usize::try_from(superblock.inode_size).unwrap_or_default()];
        blocks.read_at(&mut bytes, at)?;
        let long = |at| le32(&bytes, at).unwrap_or_default();
        let generation = long(0x64);
        if !checksum_matches(superblock, number, generation, &bytes) {
            return Err(broken(format!("wrong checksum of inode {number}")));
        }
        let kind = match le16(&bytes, 0).unwrap_or_default() & 0xf000 {
            0x8000 => Kind::File,
            0x4000 => Kind::Folder,
            0xa000 => Kind::Link,
            _ => Kind::Other,
        };
        Ok(Self {
            kind,
            size: u64::from(long(0x6c)) << 32 | u64::from(long(0x4)),
            number,
            generation,
            flags: long(0x20),
            root: array(&bytes, 0x28).unwrap_or([0; 60]),
        })
    }

    /// The target of a short link, which lies in the inode itself.
    pub(super) fn short_target(&self) -> Option<&[u8]> {
        let len = usize::try_from(self.size).ok().filter(|len| (1..60).contains(len))?;
        self.root.get(..len)
    }

    /// Where the file lies, in ascending order.
    pub(super) fn runs(&self, blocks: &Blocks, superblock: &Superblock) -> Result<Vec<Run>, FilesError> {
        if self.flags & (ENCRYPTED | INLINE_DATA) != 0 {
            return Err(broken(format!(
                "inode {} is encrypted or inline, which is not supported",
                self.number
            )));
        }
        let count = self.size.div_ceil(blocks.size());
        let mut map = Map { blocks, superblock, inode: self, count, runs: Vec::new(), nodes: 0, next: 0 };
        if self.flags & EXTENTS != 0 {
            let depth = le16(&self.root, 6).unwrap_or_default();
            map.extents(&self.root, depth)?;
        } else {
            map.pointers()?;
        }
        Ok(map.runs)
    }
}

/// Where the inode lies, byte.
fn inode_at(blocks: &Blocks, superblock: &Superblock, index: u32) -> Result<Option<u64>, FilesError> {
    let group = index / superblock.inodes_per_group;
    let within = u64::from(index % superblock.inodes_per_group) * superblock.inode_size;
    let Some(at) = superblock.descriptor_at(group.into()) else { return Ok(None) };
    let wide = superblock.has_wide_descriptors();
    let mut descriptor = vec![0; if wide { 64 } else { 32 }];
    blocks.read_at(&mut descriptor, at)?;
    let high = if wide { le32(&descriptor, 0x28).unwrap_or_default() } else { 0 };
    let table = u64::from(high) << 32 | u64::from(le32(&descriptor, 8).unwrap_or_default());
    Ok(table.checked_mul(blocks.size()).and_then(|at| at.checked_add(within)))
}

fn checksum_matches(superblock: &Superblock, number: u32, generation: u32, bytes: &[u8]) -> bool {
    let mut cleared = bytes.to_vec();
    let low = le16(bytes, 0x7c).unwrap_or_default();
    if let Some(field) = cleared.get_mut(0x7c..0x7e) {
        field.fill(0);
    }
    // The upper half is there if the inode says that its extra fields reach so far.
    let has_high = le16(bytes, 0x80).is_some_and(|extra| extra >= 4);
    let high = if has_high { le16(bytes, 0x82).unwrap_or_default() } else { 0 };
    if let Some(field) = cleared.get_mut(0x82..0x84).filter(|_| has_high) {
        field.fill(0);
    }
    let sum = superblock.checksum(&[&number.to_le_bytes(), &generation.to_le_bytes(), &cleared]);
    let mask = if has_high { u32::MAX } else { 0xffff };
    sum.is_none_or(|sum| sum & mask == u32::from(high) << 16 | u32::from(low))
}

/// A walk over the tree of a file's blocks.
struct Map<'a> {
    blocks: &'a Blocks,
    superblock: &'a Superblock,
    inode: &'a Inode,
    /// Blocks that the file has.
    count: u64,
    runs: Vec<Run>,
    nodes: u32,
    /// The first block of the file that may still come: all trees are in order, so a walk always ends.
    next: u64,
}

impl Map<'_> {
    /// A node of the extent tree: its header, then entries.
    fn extents(&mut self, node: &[u8], depth: u16) -> Result<(), FilesError> {
        let header = [0, 2, 6].map(|at| le16(node, at).unwrap_or_default());
        let [magic, entries, own_depth] = header;
        if magic != EXTENT_MAGIC || own_depth != depth || depth > EXTENT_DEPTH_MAX {
            return Err(self.broken("a broken node in its extent tree"));
        }
        let entries = node.get(12..12 + usize::from(entries) * 12);
        let entries = entries.ok_or_else(|| self.broken("too many entries in its extent tree"))?;
        for entry in entries.as_chunks::<12>().0 {
            let long = |at| u64::from(le32(entry, at).unwrap_or_default());
            let short = |at| u64::from(le16(entry, at).unwrap_or_default());
            if long(0) >= self.count {
                return Ok(());
            }
            if depth == 0 {
                let len = short(4);
                let (len, written) =
                    if len > EXTENT_WRITTEN_MAX { (len - EXTENT_WRITTEN_MAX, false) } else { (len, true) };
                let run = Run { first: long(0), block: short(6) << 32 | long(8), count: len };
                self.push(run, written)?;
            } else {
                let child = short(8) << 32 | long(4);
                let bytes = self.node(child)?;
                self.check_node(&bytes)?;
                self.extents(&bytes, depth - 1)?;
            }
        }
        Ok(())
    }

    fn check_node(&self, node: &[u8]) -> Result<(), FilesError> {
        let max = usize::from(le16(node, 4).unwrap_or_default());
        let at = 12 + max * 12;
        let stored = le32(node, at);
        let number = self.inode.number.to_le_bytes();
        let generation = self.inode.generation.to_le_bytes();
        let sum = node.get(..at).and_then(|node| self.superblock.checksum(&[&number, &generation, node]));
        match sum {
            Some(sum) if stored != Some(sum) => Err(self.broken("a wrong checksum in its extent tree")),
            _ => Ok(()),
        }
    }

    /// The map of ext2 and ext3: twelve block numbers, then trees of one, two and three levels.
    fn pointers(&mut self) -> Result<(), FilesError> {
        let root = self.inode.root;
        for (pointer, level) in root.as_chunks::<4>().0.iter().zip([0; 12].into_iter().chain([1, 2, 3])) {
            if self.next >= self.count {
                break;
            }
            self.pointer(u32::from_le_bytes(*pointer), level)?;
        }
        Ok(())
    }

    fn pointer(&mut self, pointer: u32, level: u32) -> Result<(), FilesError> {
        let block = u64::from(pointer);
        if level == 0 || block == 0 {
            let count = (self.blocks.size() / 4).pow(level);
            if block != 0 {
                self.push(Run { first: self.next, block, count }, true)?;
            } else {
                self.next += count;
            }
            return Ok(());
        }
        for pointer in self.node(block)?.as_chunks::<4>().0 {
            if self.next >= self.count {
                break;
            }
            self.pointer(u32::from_le_bytes(*pointer), level - 1)?;
        }
        Ok(())
    }

    fn node(&mut self, block: u64) -> Result<Vec<u8>, FilesError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(self.broken("a tree of blocks without end"));
        }
        Ok(self.blocks.read(block)?)
    }

    /// Adds a run, which must come after all others; one that was never written is a hole.
    fn push(&mut self, run: Run, written: bool) -> Result<(), FilesError> {
        if run.count == 0 || run.first < self.next || self.runs.len() == RUNS_MAX {
            return Err(self.broken("blocks out of order, or too many pieces"));
        }
        self.next = run.first + run.count;
        match self.runs.last_mut() {
            _ if !written => {}
            Some(last) if last.first + last.count == run.first && last.block + last.count == run.block => {
                last.count += run.count;
            }
            _ => self.runs.push(run),
        }
        Ok(())
    }

    fn broken(&self, what: &str) -> FilesError {
        broken(format!("inode {} has {what}", self.inode.number))
    }
}

const EXTENTS: u32 = 0x8_0000;
const ENCRYPTED: u32 = 0x800;
const INLINE_DATA: u32 = 0x1000_0000;
const EXTENT_MAGIC: u16 = 0xf30a;
const EXTENT_DEPTH_MAX: u16 = 5;
/// Longer ones are allocated but not written.
const EXTENT_WRITTEN_MAX: u64 = 32768;
/// As many as a file of 512 MiB has in blocks of 1 KiB when no two of them lie together.
const RUNS_MAX: usize = 512 * 1024;
/// More than the tree of such a file has.
const NODES_MAX: u32 = 8192;
