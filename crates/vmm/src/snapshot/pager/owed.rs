//! Which pages are still to come out of the memory files, out of which, and where to.

use std::{fs::File, io, num::NonZeroU64, os::unix::fs::FileExt};

use ec2vmm_devices::Memory;
use ec2vmm_snapshot::{Bitmap, MemoryFileError, PAGE_BYTES, Tail};
use rustix::fs::Advice;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::userfault::Span;

/// The memory files.
#[derive(Debug)]
pub(super) struct Stack {
    /// A full one, then differences. The newest that has a page is where the page is.
    files: Vec<(File, Tail)>,
    /// Of each, which windows of it the kernel was told to expect.
    expected: Vec<Bitmap>,
}

/// Pages of one file that are not far from each other: read at once, with what lies between.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Piece {
    /// Which file, from 0.
    pub(super) file: usize,
    /// The first page, which is wanted.
    pub(super) first: u64,
    /// Of the 64 from there on those that are wanted, a bit each.
    wanted: u64,
}

impl Piece {
    pub(super) fn of_one(file: usize, page: u64) -> Self {
        Self { file, first: page, wanted: 1 }
    }

    /// How many pages are read.
    pub(super) fn count(self) -> u64 {
        u64::from(u64::BITS - self.wanted.leading_zeros())
    }

    /// Behind the last.
    pub(super) fn end(self) -> u64 {
        self.first + self.count()
    }

    /// Whether this one is wanted.
    pub(super) fn has(self, page: u64) -> bool {
        (self.first..self.end()).contains(&page) && self.wanted >> (page - self.first) & 1 == 1
    }

    /// Those that are wanted.
    #[cfg(test)]
    pub(super) fn pages(self) -> impl Iterator<Item = u64> {
        (self.first..self.end()).filter(move |page| self.has(*page))
    }

    /// Adds one, if it is not too far away.
    fn take(&mut self, page: u64) -> bool {
        let is_near =
            (self.end()..=self.end() + GAP_PAGES).contains(&page) && page - self.first < PIECE_PAGES;
        if is_near {
            self.wanted |= 1 << (page - self.first);
        }
        is_near
    }
}

impl Stack {
    pub(super) fn new(files: Vec<(File, Tail)>, ram_pages: u64) -> Self {
        let windows = ram_pages.div_ceil(AROUND_PAGES);
        let expected = files.iter().map(|_| Bitmap::new(windows)).collect();
        Self { files, expected }
    }

    /// All pages that are in any of them. Others are zero.
    pub(super) fn pages(&self, ram_pages: u64) -> Bitmap {
        let mut all = Bitmap::new(ram_pages);
        self.files.iter().for_each(|(_, tail)| all.add(&tail.pages));
        all
    }

    /// Which file a page is to come from, if it is owed.
    pub(super) fn source(&self, owed: &Bitmap, page: u64) -> Option<usize> {
        if owed.has(page) { self.files.iter().rposition(|(_, tail)| tail.pages.has(page)) } else { None }
    }

    /// The first piece of these pages, which rise, and how many of them are done with when it is brought. Pages
    /// that are not owed need no bringing.
    pub(super) fn piece(
        &self,
        owed: &Bitmap,
        places: &Places,
        pages: impl Iterator<Item = u64>,
    ) -> (Option<Piece>, usize) {
        let mut piece: Option<Piece> = None;
        let mut done = 0;
        for page in pages {
            match (self.source(owed, page), &mut piece) {
                (None, _) => {}
                (Some(file), None) => piece = Some(Piece::of_one(file, page)),
                // Whoever counts a page twice gets it once.
                (Some(_), Some(piece)) if page + 1 == piece.end() => {}
                (Some(file), Some(piece)) => {
                    let is_beside = file == piece.file && places.end(page) == places.end(piece.first);
                    if !is_beside || !piece.take(page) {
                        break;
                    }
                }
            }
            done += 1;
        }
        (piece, done)
    }

    /// Has the kernel read a piece into its cache meanwhile.
    pub(super) fn expect(&self, piece: Piece) {
        self.advise(piece.file, piece.first, piece.count());
    }

    /// Has it read what lies around a page, once, as it does for files that are mapped.
    pub(super) fn expect_around(&mut self, file: usize, page: u64) {
        let window = page / AROUND_PAGES;
        let Some(expected) = self.expected.get_mut(file).filter(|expected| !expected.has(window)) else {
            return;
        };
        expected.set(window);
        self.advise(file, window * AROUND_PAGES, AROUND_PAGES);
    }

    fn advise(&self, file: usize, first: u64, count: u64) {
        let Some((file, _)) = self.files.get(file) else { return };
        let len = NonZeroU64::new(count * PAGE_BYTES);
        // It is read all the same, if later.
        let _ = rustix::fs::fadvise(file, first * PAGE_BYTES, len, Advice::WillNeed);
    }

    /// Reads a piece.
    ///
    /// # Errors
    /// The file was cut short since it was opened, or cannot be read.
    pub(super) fn read(&self, piece: Piece, into: &mut [u8]) -> Result<(), MemoryFileError> {
        let index = piece.file;
        let Some((file, _)) = self.files.get(index) else { return Ok(()) };
        file.read_exact_at(into, piece.first * PAGE_BYTES).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => MemoryFileError::Shortened { index },
            _ => MemoryFileError::Read { index, source },
        })
    }
}

/// Where the pages of RAM are in this process. The regions of RAM lie one after the other in the files, and
/// anywhere here.
#[derive(Debug)]
pub(super) struct Places(Vec<Place>);

#[derive(Debug)]
struct Place {
    first: u64,
    end: u64,
    start: u64,
}

impl Places {
    pub(super) fn of(memory: &Memory) -> Self {
        let mut first = 0;
        let places = memory.iter().map(|region| {
            let end = first + region.len() / PAGE_BYTES;
            let place = Place { first, end, start: region.as_ptr() as u64 };
            first = end;
            place
        });
        Self(places.collect())
    }

    /// How many pages there are.
    pub(super) fn pages(&self) -> u64 {
        self.0.last().map_or(0, |place| place.end)
    }

    /// Where a page is.
    pub(super) fn address(&self, page: u64) -> Option<u64> {
        self.place(page).map(|place| place.start + (page - place.first) * PAGE_BYTES)
    }

    /// Which page is there.
    pub(super) fn page(&self, address: u64) -> Option<u64> {
        self.0.iter().find_map(|place| {
            let page = place.first + address.checked_sub(place.start)? / PAGE_BYTES;
            (page < place.end).then_some(page)
        })
    }

    /// Up to which page the addresses go on without a gap.
    pub(super) fn end(&self, page: u64) -> u64 {
        self.place(page).map_or(0, |place| place.end)
    }

    /// What is to be registered so that all of `pages` is: whole blocks of huge pages, and all others left alone,
    /// in which the host can then give huge pages, and everything else, by itself.
    pub(super) fn blocks(&self, pages: &Bitmap) -> Vec<Span> {
        let block = block_pages(self.pages());
        let mut blocks: Vec<(u64, Span)> = Vec::new();
        for (mut first, count) in pages.runs() {
            let end = first + count;
            while let Some(place) = self.place(first).filter(|_| first < end) {
                let here = end.min(place.end);
                // Regions begin on a huge page, and may end within a block.
                let from = (first - place.first) / block * block;
                let to = (here - place.first).next_multiple_of(block).min(place.end - place.first);
                let start = place.start + from * PAGE_BYTES;
                let span = Span { start, len: (to - from) * PAGE_BYTES };
                match blocks.last_mut() {
                    // Regions may lie beside each other too, and stay apart.
                    Some((region, last)) if *region == place.first && start <= last.start + last.len => {
                        last.len = last.len.max(span.start + span.len - last.start);
                    }
                    _ => blocks.push((place.first, span)),
                }
                first = here;
            }
        }
        blocks.into_iter().map(|(_, span)| span).collect()
    }

    fn place(&self, page: u64) -> Option<&Place> {
        self.0.iter().find(|place| (place.first..place.end).contains(&page))
    }
}

/// A power of two of huge pages, and as many as keeps the number of blocks below [`BLOCKS_MAX`].
fn block_pages(ram_pages: u64) -> u64 {
    ram_pages.div_ceil(BLOCKS_MAX).next_power_of_two().max(HUGE_PAGE_PAGES)
}

/// The most that is read at once: what somebody waits for who has come too late.
pub(super) const PIECE_PAGES: u64 = 64;
/// What lies between two pages that are wanted is read with them if it is no more than this.
const GAP_PAGES: u64 = 8;
/// 128 KiB, as Linux reads around pages of mapped files (`read_ahead_kb`).
const AROUND_PAGES: u64 = 32;
/// What one entry of a page directory maps.
const HUGE_PAGE_PAGES: u64 = 512;
/// A mapping each, at worst, of the 65,530 that Linux lets a process have (`vm.max_map_count`).
const BLOCKS_MAX: u64 = 8192;

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use ec2vmm_snapshot::{Bitmap, MemoryFileError, Tail};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::{BLOCKS_MAX, PIECE_PAGES, Piece, Place, Places, Stack, block_pages};
    use crate::userfault::Span;

    const PAGES: u64 = 64;

    fn bitmap(pages: impl IntoIterator<Item = u64>, of: u64) -> Bitmap {
        let mut bitmap = Bitmap::new(of);
        pages.into_iter().for_each(|page| bitmap.set(page));
        bitmap
    }

    /// Each file's pages are filled with its number and theirs.
    fn stack(files: &[Vec<u64>]) -> Stack {
        let file = |(index, pages): (usize, &Vec<u64>)| {
            let file = tempfile::tempfile().unwrap();
            for page in pages {
                let content = [u8::try_from(index).unwrap(), u8::try_from(*page).unwrap()].repeat(2048);
                file.write_all_at(&content, page * 4096).unwrap();
            }
            let tail = Tail { id: Uuid::nil(), parent: None, pages: bitmap(pages.iter().copied(), PAGES) };
            (file, tail)
        };
        Stack::new(files.iter().enumerate().map(file).collect(), PAGES)
    }

    fn files() -> impl Strategy<Value = Vec<Vec<u64>>> {
        prop::collection::vec(prop::collection::vec(0..PAGES, 0..40), 1..5)
    }

    proptest! {
        #[test]
        fn every_page_comes_from_the_newest_file_that_has_it(
            files in files(),
            wanted in prop::collection::btree_set(0..PAGES, 0..64),
        ) {
            let (stack, mut seen) = (stack(&files), vec![None; 64]);
            let places = Places(vec![Place { first: 0, end: 40, start: 0 }, Place { first: 40, end: 64, start: 1 << 20 }]);
            let (mut owed, mut done) = (stack.pages(PAGES), 0);
            while let (Some(piece), count) = stack.piece(&owed, &places, wanted.iter().copied().skip(done)) {
                let mut content = vec![0; usize::try_from(piece.count() * 4096).unwrap()];
                stack.read(piece, &mut content).unwrap();
                prop_assert!(piece.count() <= PIECE_PAGES && places.end(piece.first) >= piece.end());
                for page in piece.pages() {
                    let content = &content[usize::try_from((page - piece.first) * 4096).unwrap()..];
                    prop_assert_eq!(seen[usize::try_from(page).unwrap()], None, "once");
                    seen[usize::try_from(page).unwrap()] = Some((content[0], u64::from(content[1])));
                    owed.clear(page..page + 1);
                }
                done += count;
            }
            let model = |page| {
                let newest = files.iter().rposition(|pages| pages.contains(&page) && wanted.contains(&page))?;
                Some((u8::try_from(newest).unwrap(), page))
            };
            prop_assert_eq!(seen, (0..PAGES).map(model).collect::<Vec<_>>());
        }

        #[test]
        fn what_is_registered_has_every_page_and_little_else(
            pages in prop::collection::btree_set(0..20_000_u64, 0..30),
            split in 1..39_u64,
        ) {
            let split = split * 512;
            let low = Place { first: 0, end: split, start: 0x1000_0000_0000 };
            let high = Place { first: split, end: 20_000, start: low.start + split * 4096 };
            let places = Places(vec![low, high]);
            let blocks = places.blocks(&bitmap(pages.iter().copied(), 20_000));
            for page in &pages {
                let address = places.address(*page).unwrap();
                let here = |span: &&Span| (span.start..span.start + span.len).contains(&address);
                prop_assert_eq!(blocks.iter().filter(here).count(), 1);
                prop_assert_eq!(places.page(address + 4095), Some(*page));
            }
            for Span { start, len } in &blocks {
                let first = places.page(*start).unwrap();
                prop_assert!(first + len / 4096 <= places.end(first), "it is within a region");
                for at in (0..len / 4096).step_by(512) {
                    prop_assert!(pages.range(first + at..first + at + 512).next().is_some());
                }
            }
        }
    }

    #[test]
    fn a_file_that_ends_is_told_from_one_that_cannot_be_read() {
        let stack = Stack::new(
            vec![
                (
                    tempfile::tempfile().unwrap(),
                    Tail { id: Uuid::nil(), parent: None, pages: Bitmap::new(8) },
                ),
                (File::open("/").unwrap(), Tail { id: Uuid::nil(), parent: None, pages: Bitmap::new(8) }),
            ],
            8,
        );
        let read = |file| stack.read(Piece::of_one(file, 0), &mut [0; 4096]);
        assert!(matches!(read(0), Err(MemoryFileError::Shortened { index: 0 })));
        assert!(matches!(read(1), Err(MemoryFileError::Read { index: 1, .. })));
    }

    #[test]
    fn neighbours_that_are_not_far_are_read_together() {
        let (stack, places) =
            (stack(&[(0..PAGES).collect()]), Places(vec![Place { first: 0, end: PAGES, start: 0 }]));
        let owed = stack.pages(PAGES);
        let pieces = |pages: &[u64]| {
            let mut rest = pages.iter().copied();
            std::iter::from_fn(|| {
                let (piece, done) = stack.piece(&owed, &places, rest.clone());
                rest.by_ref().take(done).for_each(drop);
                piece.map(|piece| (piece.first, piece.count(), piece.pages().count()))
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(pieces(&[1, 2, 3]), [(1, 3, 3)]);
        assert_eq!(pieces(&[1, 10, 20]), [(1, 10, 2), (20, 1, 1)]);
        assert_eq!(pieces(&[3, 3, 2, 63]), [(3, 1, 1), (2, 1, 1), (63, 1, 1)]);
        assert_eq!(pieces(&(0..PAGES).collect::<Vec<_>>()), [(0, 64, 64)]);
    }

    #[test]
    fn a_large_machine_has_larger_blocks_and_not_more() {
        for gib in [1_u64, 16, 17, 64, 1024, 16 * 1024] {
            let pages = gib << 18;
            assert!(pages.div_ceil(block_pages(pages)) <= BLOCKS_MAX);
        }
        assert_eq!(block_pages(16 << 18), 512);
    }
}
