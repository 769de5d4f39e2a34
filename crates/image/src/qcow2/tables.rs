//! The tables behind a qcow2 header: whether all that they point to is there, and counted as in use.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Header, Qcow2Error};

impl Header {
    /// Checks that all that the tables point to lies within the file, which is `len` bytes long, and for
    /// a file that is to be written, that nothing in use counts as free: imago gives out what does.
    ///
    /// Reads at most [`SCAN_BYTES`] of tables: enough for a full disk of 400 GiB with the usual 64 KiB
    /// clusters. What lies beyond is found when it is read.
    pub(crate) fn check_tables(&self, file: &File, len: u64, write: bool) -> Result<(), Qcow2Error> {
        let mut scan =
            Scan { file, len, cluster: 1 << self.cluster_bits, budget: SCAN_BYTES, refcounts: None };
        let l1 = scan.pointers(self.l1_offset, self.l1_entries * 8)?;
        let l2_tables: Vec<u64> = l1.into_iter().filter(|&offset| offset != 0).collect();
        let refcount_bytes = self.refcount_clusters << self.cluster_bits;
        let blocks = scan.pointers(self.refcount_offset, refcount_bytes)?;
        for &block in blocks.iter().filter(|&&offset| offset != 0) {
            scan.check_place("a reference count block", block, 1)?;
        }
        if write {
            scan.refcounts = Some(Refcounts { blocks, order: self.refcount_order, read: HashMap::new() });
            scan.check_counted("the header", 0, 1)?;
            scan.check_counted("the L1 table", self.l1_offset, self.l1_entries * 8)?;
            scan.check_counted("the reference count table", self.refcount_offset, refcount_bytes)?;
        }
        for table in l2_tables {
            scan.check_place("an L2 table", table, scan.cluster)?;
            scan.check_counted("an L2 table", table, 1)?;
            if !scan.l2_table(table, self.cluster_bits)? {
                break;
            }
        }
        Ok(())
    }
}

/// A walk over the tables.
struct Scan<'a> {
    file: &'a File,
    len: u64,
    cluster: u64,
    budget: u64,
    /// There if they are to be checked.
    refcounts: Option<Refcounts>,
}

/// How often each cluster is in use.
struct Refcounts {
    /// Where the blocks of counts lie; 0 for one that is not there.
    blocks: Vec<u64>,
    order: u32,
    read: HashMap<u64, Vec<u8>>,
}

impl Scan<'_> {
    /// The pointers of a table of `bytes` bytes.
    fn pointers(&self, table: u64, bytes: u64) -> Result<Vec<u64>, Qcow2Error> {
        let bytes = self.read(table, bytes)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry) & OFFSET_MASK).collect())
    }

    /// Checks one L2 table; `false` when the budget is spent.
    fn l2_table(&mut self, table: u64, cluster_bits: u32) -> Result<bool, Qcow2Error> {
        if self.budget < self.cluster {
            return Ok(false);
        }
        self.budget -= self.cluster;
        let compressed_mask = (1u64 << (62 - (cluster_bits - 8))) - 1;
        for entry in self.read(table, self.cluster)?.as_chunks::<8>().0 {
            let entry = u64::from_be_bytes(*entry);
            if entry & COMPRESSED != 0 {
                let offset = entry & compressed_mask;
                if offset >= self.len {
                    return Err(self.truncated("a compressed cluster", offset));
                }
                self.check_counted("a compressed cluster", offset, 1)?;
                continue;
            }
            let offset = entry & OFFSET_MASK;
            if offset == 0 {
                continue;
            }
            // One that reads as zeros keeps its room without ever having been written.
            if entry & ZERO == 0 {
                self.check_place("a data cluster", offset, 1)?;
            }
            self.check_counted("a data cluster", offset, 1)?;
        }
        Ok(true)
    }

    /// Checks that a cluster starts at `offset` and that `bytes` bytes of it are there.
    fn check_place(&self, what: &'static str, offset: u64, bytes: u64) -> Result<(), Qcow2Error> {
        if !offset.is_multiple_of(self.cluster) {
            return Err(Qcow2Error::Misaligned { what, offset });
        }
        if offset + bytes > self.len { Err(self.truncated(what, offset)) } else { Ok(()) }
    }

    fn truncated(&self, what: &'static str, offset: u64) -> Qcow2Error {
        Qcow2Error::Truncated { what, offset, len: self.len }
    }

    /// Checks that no cluster of a range counts as free.
    fn check_counted(&mut self, what: &'static str, offset: u64, bytes: u64) -> Result<(), Qcow2Error> {
        let Some(mut refcounts) = self.refcounts.take() else { return Ok(()) };
        for cluster in offset / self.cluster..(offset + bytes).div_ceil(self.cluster) {
            if !refcounts.is_counted(self, cluster)? {
                return Err(Qcow2Error::Free { what, offset: cluster * self.cluster });
            }
        }
        self.refcounts = Some(refcounts);
        Ok(())
    }

    /// Bytes of the file; what lies beyond its end reads as zeros, as imago reads it.
    fn read(&self, at: u64, bytes: u64) -> Result<Vec<u8>, Qcow2Error> {
        let mut buffer = vec![0; usize::try_from(bytes).unwrap_or_default()];
        let there = usize::try_from(self.len.saturating_sub(at).min(bytes)).unwrap_or_default();
        let there = buffer.get_mut(..there).unwrap_or_default();
        self.file.read_exact_at(there, at).map_err(Qcow2Error::Io)?;
        Ok(buffer)
    }
}

impl Refcounts {
    /// Whether the cluster is in use. Says so too when the budget for finding out is spent.
    fn is_counted(&mut self, scan: &mut Scan<'_>, cluster: u64) -> Result<bool, Qcow2Error> {
        let counts_per_block = (scan.cluster * 8) >> self.order;
        let (index, within) = (cluster / counts_per_block, cluster % counts_per_block);
        let block = usize::try_from(index).ok().and_then(|index| self.blocks.get(index));
        let Some(&block) = block.filter(|&&block| block != 0) else { return Ok(false) };
        let counts = match self.read.entry(index) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(_) if scan.budget < scan.cluster => return Ok(true),
            Entry::Vacant(unread) => {
                scan.budget -= scan.cluster;
                unread.insert(scan.read(block, scan.cluster)?)
            }
        };
        Ok(count_is_set(counts, self.order, within))
    }
}

/// Whether count number `index` of a block is not zero; counts of less than a byte fill it from below.
fn count_is_set(counts: &[u8], order: u32, index: u64) -> bool {
    let bits = 1u64 << order;
    let at = usize::try_from(index * bits / 8).unwrap_or(usize::MAX);
    if bits >= 8 {
        let bytes = usize::try_from(bits / 8).unwrap_or_default();
        let count = counts.get(at..).and_then(|tail| tail.get(..bytes));
        return count.is_some_and(|count| count.iter().any(|&byte| byte != 0));
    }
    let mask = ((1u64 << bits) - 1) << (index * bits % 8);
    counts.get(at).is_some_and(|&byte| u64::from(byte) & mask != 0)
}

/// How much of the L2 tables and reference counts is read.
const SCAN_BYTES: u64 = 64 << 20;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
