//! Pages of guest memory that this process has written, for snapshots that hold what has changed.
//!
//! KVM knows what the guest has written; what devices write into its memory, only we do. Guest memory
//! tells its log of every write through `vm-memory`; whoever has the kernel write there (a read from a file,
//! a frame from a tap) says so by [`crate::virtio::Buffers::mark_written`]. Off, as at first, a write costs
//! one look at a flag.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// The log of one region of guest memory.
#[derive(Clone, Debug, Default)]
pub struct DirtyLog(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pages: usize,
    on: AtomicBool,
    /// A bit a page; made when the log is first turned on.
    words: OnceLock<Box<[AtomicU64]>>,
}

impl DirtyLog {
    /// Notes what is written from now on, or notes nothing. What was noted is forgotten.
    pub fn turn(&self, on: bool) {
        self.0.on.store(on, Ordering::Relaxed);
        self.take();
    }

    /// Counts every page as written.
    pub fn mark_all(&self) {
        self.mark_dirty(0, self.0.pages.saturating_mul(PAGE_BYTES));
    }

    /// The pages that were written since the last call, a bit each, and 64 a word.
    pub fn take(&self) -> Vec<u64> {
        let words = self.0.words.get().map(AsRef::as_ref).unwrap_or_default();
        words.iter().map(|word| word.swap(0, Ordering::Relaxed)).collect()
    }
}

impl NewBitmap for DirtyLog {
    fn with_len(len: usize) -> Self {
        Self(Arc::new(Inner { pages: len.div_ceil(PAGE_BYTES), ..Inner::default() }))
    }
}

impl Bitmap for DirtyLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Inner { pages, on, words } = &*self.0;
        if !on.load(Ordering::Relaxed) || len == 0 {
            return;
        }
        let words = words.get_or_init(|| (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect());
        let last = offset.saturating_add(len - 1) / PAGE_BYTES;
        for page in offset / PAGE_BYTES..=last.min(pages.saturating_sub(1)) {
            if let Some(word) = words.get(page / 64) {
                word.fetch_or(1 << (page % 64), Ordering::Relaxed);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_BYTES;
        let word = self.0.words.get().and_then(|words| words.get(page / 64));
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice { log: self, offset }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyLog {
    type S = DirtySlice<'a>;
}

/// The log from an offset on.
#[derive(Clone, Copy, Debug)]
pub struct DirtySlice<'a> {
    log: &'a DirtyLog,
    offset: usize,
}

impl<'a> DirtySlice<'a> {
    /// The log that it is a part of.
    pub fn log(&self) -> &'a DirtyLog {
        self.log
    }
}

impl Bitmap for DirtySlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.log.mark_dirty(self.offset.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.log.dirty_at(self.offset.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { log: self.log, offset: self.offset.saturating_add(offset) }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtySlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtySlice<'_> {}

const PAGE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, bitmap::Bitmap};

    use crate::Memory;

    /// The pages of the first region that were written.
    fn written(memory: &Memory) -> Vec<usize> {
        let words = memory.iter().next().unwrap().bitmap().log().take();
        (0..words.len() * 64).filter(|page| words[page / 64] >> (page % 64) & 1 == 1).collect()
    }

    fn turn(memory: &Memory, on: bool) {
        memory.iter().for_each(|region| region.bitmap().log().turn(on));
    }

    #[test]
    fn every_way_of_writing_is_noted_while_it_is_on() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 100 << 12)]).unwrap();
        memory.write_slice(&[1], GuestAddress(0)).unwrap();
        assert_eq!(written(&memory), [0; 0]);
        turn(&memory, true);
        memory.write_slice(&[1; 5000], GuestAddress(0x1fff)).unwrap();
        memory.write_obj(7_u64, GuestAddress(70 << 12)).unwrap();
        memory.store(7_u16, GuestAddress(80 << 12), Ordering::Relaxed).unwrap();
        memory.get_slice(GuestAddress(90 << 12), 4096).unwrap().copy_from(&[1_u8; 9]);
        memory.read_obj::<u64>(GuestAddress(60 << 12)).unwrap();
        assert_eq!(written(&memory), [1, 2, 3, 70, 80, 90]);
        assert_eq!(written(&memory), [0; 0], "taken");
        memory.write_slice(&[1], GuestAddress(0)).unwrap();
        turn(&memory, false);
        memory.write_slice(&[1], GuestAddress(0)).unwrap();
        assert_eq!(written(&memory), [0; 0]);
    }

    #[test]
    fn no_page_is_noted_that_is_not_there() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 10 << 12)]).unwrap();
        turn(&memory, true);
        let region = memory.iter().next().unwrap();
        let slice = region.bitmap();
        slice.mark_dirty(usize::MAX, usize::MAX);
        slice.mark_dirty(5 << 12, 0);
        assert_eq!(written(&memory), [0; 0]);
        slice.mark_dirty(9 << 12, usize::MAX);
        assert!(slice.dirty_at(9 << 12) && !slice.dirty_at(8 << 12));
        assert_eq!(written(&memory), [9]);
        slice.log().mark_all();
        assert_eq!(written(&memory), (0..10).collect::<Vec<_>>());
    }
}
