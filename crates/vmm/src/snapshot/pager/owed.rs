//! Which pages are still to come out of the memory files, out of which, and where to.

use std::{fs::File, io, os::unix::fs::FileExt};

use ec2vmm_devices::Memory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::super::memory_file::{Bitmap, MemoryFileError, PAGE_BYTES, Tail};
use crate::userfault::Span;

/// A full memory file, then differences. The newest that has a page is where the page is.
#[derive(Debug)]
pub(super) struct Stack(Vec<(File, Tail)>);

/// Pages one after the other that are in the same file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Run {
    /// Which file, from 0.
    pub(super) file: usize,
    /// The first page.
    pub(super) first: u64,
    /// How many.
    pub(super) count: u64,
}

impl Stack {
    pub(super) fn new(files: Vec<(File, Tail)>) -> Self {
        Self(files)
    }

    /// All pages that are in any of them. Others are zero.
    pub(super) fn pages(&self, ram_pages: u64) -> Bitmap {
        let mut all = Bitmap::new(ram_pages);
        self.0.iter().for_each(|(_, tail)| all.add(&tail.pages));
        all
    }

    /// The pages from `first` up to `end` that are owed and in the same file, if the first is.
    pub(super) fn run(&self, owed: &Bitmap, first: u64, end: u64) -> Option<Run> {
        let newest = |page| self.0.iter().rposition(|(_, tail)| tail.pages.has(page));
        let file = newest(first).filter(|_| first < end && owed.has(first))?;
        let count = (first..end).take_while(|&page| owed.has(page) && newest(page) == Some(file)).count();
        Some(Run { file, first, count: count as u64 })
    }

    /// Reads a run.
    ///
    /// # Errors
    /// The file was cut short since it was opened, or cannot be read.
    pub(super) fn read(&self, run: Run, into: &mut [u8]) -> Result<(), MemoryFileError> {
        let index = run.file;
        let Some((file, _)) = self.0.get(index) else { return Ok(()) };
        file.read_exact_at(into, run.first * PAGE_BYTES).map_err(|source| match source.kind() {
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

/// What one entry of a page directory maps.
const HUGE_PAGE_PAGES: u64 = 512;
/// A mapping each, at worst, of the 65,530 that Linux lets a process have (`vm.max_map_count`).
const BLOCKS_MAX: u64 = 8192;

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::{
        super::super::memory_file::{Bitmap, MemoryFileError, Tail},
        BLOCKS_MAX, Place, Places, Run, Stack, block_pages,
    };
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
        Stack::new(files.iter().enumerate().map(file).collect())
    }

    fn files() -> impl Strategy<Value = Vec<Vec<u64>>> {
        prop::collection::vec(prop::collection::vec(0..PAGES, 0..40), 1..5)
    }

    proptest! {
        #[test]
        fn every_page_comes_from_the_newest_file_that_has_it(files in files(), piece in 1..PAGES) {
            let (stack, mut seen) = (stack(&files), vec![None; 64]);
            let mut owed = stack.pages(PAGES);
            while let Some((first, _)) = { let mut runs = owed.runs(); runs.next() } {
                let run = stack.run(&owed, first, first + piece).unwrap();
                let mut content = vec![0; usize::try_from(run.count * 4096).unwrap()];
                stack.read(run, &mut content).unwrap();
                for (page, content) in (run.first..).zip(content.chunks(4096)) {
                    seen[usize::try_from(page).unwrap()] = Some((content[0], u64::from(content[1])));
                }
                owed.clear(run.first..run.first + run.count);
            }
            let model = |page| {
                let newest = files.iter().rposition(|pages| pages.contains(&page))?;
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
        let stack = Stack::new(vec![
            (tempfile::tempfile().unwrap(), Tail { id: Uuid::nil(), parent: None, pages: Bitmap::new(8) }),
            (File::open("/").unwrap(), Tail { id: Uuid::nil(), parent: None, pages: Bitmap::new(8) }),
        ]);
        let read = |file| stack.read(Run { file, first: 0, count: 1 }, &mut [0; 4096]);
        assert!(matches!(read(0), Err(MemoryFileError::Shortened { index: 0 })));
        assert!(matches!(read(1), Err(MemoryFileError::Read { index: 1, .. })));
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
