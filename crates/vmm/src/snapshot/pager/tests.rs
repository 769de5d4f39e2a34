use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ec2vmm_devices::{Memory, virtio::balloon::Reclaim};
use ec2vmm_snapshot::{Bitmap, PAGE_BYTES, Tail, read_tail};
use proptest::prelude::*;
use uuid::Uuid;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{
    super::{
        memory_file,
        working_set::{self, Whose},
    },
    Pager, Parts, Rest,
    owed::{PIECE_PAGES, Places, Stack},
    thread::Ahead,
};
use crate::{mailbox::Mailbox, memory, reclaim::Madvise, report::Report, userfault::Userfault};

const MIB: u64 = 32;
const PAGES: u64 = MIB << 8;
const FULL: Uuid = Uuid::from_u128(1);

/// What a page of a machine holds: zero, or its number and a version.
fn content(page: u64, version: u8) -> u64 {
    page << 8 | u64::from(version)
}

fn address(memory: &Memory, page: u64) -> GuestAddress {
    let mut offset = page * PAGE_BYTES;
    for region in memory.iter() {
        if offset < region.len() {
            return GuestAddress(region.start_addr().0 + offset);
        }
        offset -= region.len();
    }
    panic!("page {page} is not there")
}

fn set(memory: &Memory, page: u64, version: u8) {
    memory.write_obj(content(page, version), address(memory, page)).unwrap();
}

/// Touches a page.
fn get(memory: &Memory, page: u64) -> u64 {
    memory.read_obj(address(memory, page)).unwrap()
}

fn bitmap(pages: &[u64], of: u64) -> Bitmap {
    let mut bitmap = Bitmap::new(of);
    pages.iter().for_each(|page| bitmap.set(*page));
    bitmap
}

/// A full file with these pages in version 1.
fn full(mib: u64, pages: impl IntoIterator<Item = u64>) -> (File, Tail) {
    let (before, file) = (memory::map(mib).unwrap(), tempfile::tempfile().unwrap());
    pages.into_iter().for_each(|page| set(&before, page, 1));
    memory_file::write(&before, &file, FULL, None, &AtomicBool::new(false)).unwrap();
    let tail = read_tail(&file, 0, mib << 20).unwrap();
    (file, tail)
}

fn difference(mib: u64, pages: &[u64], version: u8) -> (File, Tail) {
    let (before, file) = (memory::map(mib).unwrap(), tempfile::tempfile().unwrap());
    pages.iter().for_each(|page| set(&before, *page, version));
    let changed = bitmap(pages, mib << 8);
    memory_file::write(
        &before,
        &file,
        Uuid::from_u128(version.into()),
        Some((&changed, FULL)),
        &AtomicBool::new(false),
    )
    .unwrap();
    let tail = read_tail(&file, 0, mib << 20).unwrap();
    (file, tail)
}

struct Paged {
    memory: Arc<Memory>,
    pager: Pager,
    _mailbox: Mailbox,
}

/// None where this host, or this user, has no userfaultfd.
fn start(
    mib: u64,
    files: Vec<(File, Tail)>,
    ahead: Vec<u32>,
    record: Option<(File, Whose)>,
) -> Option<Paged> {
    let device = File::options().read(true).write(true).open("/dev/userfaultfd").ok();
    let userfault = match Userfault::new(device.as_ref().map(std::os::fd::AsFd::as_fd)) {
        Ok(userfault) => userfault,
        Err(error) => {
            log_skipped(&error);
            return None;
        }
    };
    let (memory, mailbox) = (memory::map(mib).unwrap(), Mailbox::new().unwrap());
    let parts = Parts { userfault, files, ahead, record };
    let report = Report::new(Instant::now());
    let pager = Pager::start(Arc::clone(&memory), parts, mailbox.sender(), report).unwrap();
    Some(Paged { memory, pager, _mailbox: mailbox })
}

#[allow(clippy::print_stderr, reason = "a test that leaves something out says so")]
fn log_skipped(error: &dyn std::error::Error) {
    eprintln!("SKIPPED: {}", crate::error::chain(error));
}

impl Paged {
    fn counter(&self, name: &str) -> u64 {
        let metrics = self.pager.metrics();
        metrics.iter().find(|(known, _)| *known == name).unwrap().1
    }

    fn wait_until(&self, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{:?}", self.pager.metrics());
            thread::yield_now();
        }
    }
}

#[test]
fn every_page_is_the_newest_and_comes_once() {
    let first: Vec<u64> = (0..PAGES).step_by(3).collect();
    let (second, third) = ([0, 1, 2, 3, 700, 8191], [2, 3, 4, 8190]);
    // Version 0 of page 0 is zero, and in a file all the same.
    let files = vec![full(MIB, first.clone()), difference(MIB, &second, 2), difference(MIB, &third, 3)];
    let Some(paged) = start(MIB, files, vec![], None) else { return };
    let version = |page| match page {
        page if third.contains(&page) => 3,
        page if second.contains(&page) => 2,
        page if page % 3 == 0 => 1,
        _ => 0,
    };
    for page in (0..PAGES).rev().chain(0..PAGES) {
        let expected = if version(page) == 0 { 0 } else { content(page, version(page)) };
        assert_eq!(get(&paged.memory, page), expected, "page {page}");
    }
    let there = (0..PAGES).filter(|page| version(*page) != 0).count() as u64;
    assert_eq!((paged.counter("faults"), paged.counter("owed")), (there, 0));
    // It has nothing left to do, and goes.
    paged.wait_until(|paged| paged.pager.thread.is_finished());
    paged.pager.stop();
}

#[test]
fn memory_above_the_hole_and_what_was_never_written_is_as_it_was() {
    let mib = 3200;
    let low = memory::map(mib).unwrap().iter().next().unwrap().len() / PAGE_BYTES;
    let pages = [0, 1, low - 1, low, low + 1, low + 600, (mib << 8) - 1];
    let Some(paged) = start(mib, vec![full(mib, pages)], vec![], None) else { return };
    for page in pages {
        assert_eq!(get(&paged.memory, page), content(page, 1));
        // Beside it, and in blocks that are not registered.
        for zero in [page ^ 0x10, low / 2, low + 2000] {
            assert_eq!(get(&paged.memory, zero), 0);
        }
    }
    assert_eq!(paged.counter("faults"), 7);
    paged.pager.stop();
}

#[test]
fn what_is_discarded_is_zero_before_and_after_it_has_come() {
    let Some(paged) = start(MIB, vec![full(MIB, 0..PAGES)], vec![], None) else { return };
    let madvise = Madvise::new(Arc::clone(&paged.memory), Some(paged.pager.discards()));
    let discard =
        |page: u64, count| madvise.discard(GuestAddress(page * PAGE_BYTES), count * PAGE_BYTES).unwrap();
    get(&paged.memory, 10);
    discard(8, 4);
    assert_eq!([7, 8, 10, 11, 12].map(|page| get(&paged.memory, page) >> 8), [7, 0, 0, 0, 12]);
    // The guest uses them again.
    set(&paged.memory, 10, 9);
    assert_eq!(get(&paged.memory, 10), content(10, 9));
    discard(512, 512);
    assert_eq!([511, 512, 1023, 1024].map(|page| get(&paged.memory, page) >> 8), [511, 0, 0, 1024]);
    discard(0, PAGES);
    assert_eq!(paged.counter("owed"), 0);
    assert_eq!(get(&paged.memory, 4000), 0);
    paged.wait_until(|paged| paged.pager.thread.is_finished());
    // Also when nobody is there any more.
    set(&paged.memory, 4000, 9);
    discard(4000, 1);
    assert_eq!(get(&paged.memory, 4000), 0);
    paged.pager.stop();
}

fn bring_all(pager: &Pager) {
    pager.bring_all().wait(&AtomicBool::new(false));
}

#[test]
fn what_is_discarded_while_all_comes_does_not_come_back() {
    for _ in 0..5 {
        let Some(paged) = start(MIB, vec![full(MIB, 0..PAGES)], vec![], None) else { return };
        let madvise = Madvise::new(Arc::clone(&paged.memory), Some(paged.pager.discards()));
        thread::scope(|scope| {
            scope.spawn(|| bring_all(&paged.pager));
            for page in (0..PAGES).step_by(16) {
                madvise.discard(GuestAddress(page * PAGE_BYTES), 4 * PAGE_BYTES).unwrap();
            }
        });
        for page in 0..PAGES {
            let expected = if page % 16 < 4 { 0 } else { content(page, 1) };
            assert_eq!(get(&paged.memory, page), expected, "page {page}");
        }
        assert_eq!(paged.counter("faults"), 0);
        paged.pager.stop();
    }
}

#[test]
fn many_wait_for_the_same_page() {
    let Some(paged) = start(MIB, vec![full(MIB, (0..PAGES).step_by(2))], vec![], None) else { return };
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for page in 0..PAGES {
                    let expected = if page % 2 == 0 { content(page, 1) } else { 0 };
                    assert_eq!(get(&paged.memory, page), expected);
                }
            });
        }
    });
    assert_eq!(paged.counter("faults"), PAGES / 2);
    paged.pager.stop();
}

#[test]
fn what_is_touched_is_recorded_in_its_order_and_nothing_else() {
    let whose = Whose { id: FULL, ram_bytes: MIB << 20 };
    let file = tempfile::tempfile().unwrap();
    let record = Some((file.try_clone().unwrap(), whose));
    let Some(mut paged) = start(MIB, vec![full(MIB, 0..4096)], vec![], record) else { return };
    // The last has nothing to be read for it.
    for page in [77, 3, 4095, 4, 3, 77, 5000] {
        get(&paged.memory, page);
    }
    // Brought, and touched by nobody.
    bring_all(&paged.pager);
    get(&paged.memory, 100);
    assert_eq!(paged.pager.record().unwrap().unwrap(), 4);
    assert!(paged.pager.record().is_none(), "it is recorded once");
    assert_eq!(working_set::read(&file, whose).unwrap(), [77, 3, 4095, 4]);
    paged.pager.stop();
}

#[test]
fn a_working_set_comes_before_it_is_touched() {
    let ahead = vec![5, 6, 7, 4000, 1000, 9, 9, 8000];
    let Some(paged) = start(MIB, vec![full(MIB, 0..4096)], ahead, None) else { return };
    paged.wait_until(|paged| paged.counter("prefetched") == 6);
    for page in [5, 6, 7, 9, 1000, 4000] {
        assert_eq!(get(&paged.memory, page), content(page, 1));
    }
    // One that the files have not is left alone.
    assert_eq!(get(&paged.memory, 8000), 0);
    assert_eq!((paged.counter("faults"), paged.counter("owed")), (0, 4096 - 6));
    assert_eq!(get(&paged.memory, 8), content(8, 1));
    assert_eq!(paged.counter("faults"), 1);
    paged.pager.stop();
}

#[test]
fn one_that_is_stopped_leaves_zeroes() {
    let Some(paged) = start(MIB, vec![full(MIB, 0..PAGES)], vec![], None) else { return };
    get(&paged.memory, 5);
    let Paged { memory, pager, .. } = paged;
    pager.stop();
    assert_eq!((get(&memory, 5), get(&memory, 6)), (content(5, 1), 0));
    memory::forget_file(&memory).unwrap();
    assert_eq!(get(&memory, 5), 0);
}

proptest! {
    #[test]
    fn all_of_a_working_set_comes_in_pieces(
        wanted in prop::collection::vec(0..300_u32, 0..300),
        have in prop::collection::btree_set(0..300_u64, 0..300),
        all in any::<bool>(),
    ) {
        let have: Vec<u64> = have.into_iter().collect();
        let pages = bitmap(&have, MIB << 8);
        let tail = Tail { id: FULL, parent: None, pages: pages.clone() };
        let stack = Stack::new(vec![(tempfile::tempfile().unwrap(), tail)], MIB << 8);
        let places = Places::of(&memory::map(MIB).unwrap());
        let (mut ahead, mut owed, mut came) = (Ahead::new(wanted.clone()), pages, Vec::new());
        if all {
            ahead.want_all();
        }
        loop {
            ahead.plan(&owed, &stack, &places);
            let Some(piece) = ahead.next() else { break };
            prop_assert!((1..=PIECE_PAGES).contains(&piece.count()));
            came.extend(piece.pages().filter(|page| owed.has(*page)));
            for page in piece.pages() {
                owed.clear(page..page + 1);
            }
        }
        came.sort_unstable();
        let expected: Vec<u64> =
            have.into_iter().filter(|page| all || wanted.iter().any(|w| u64::from(*w) == *page)).collect();
        prop_assert_eq!(came, expected);
    }
}

#[test]
fn who_waits_for_all_can_be_told_not_to() {
    let Some(paged) = start(MIB, vec![full(MIB, 0..PAGES)], vec![], None) else { return };
    let given_up = AtomicBool::new(false);
    let rest = Rest(Arc::clone(&paged.pager.shared));
    // Nobody looks as long as this is held.
    let held = paged.pager.shared.lock();
    thread::scope(|scope| {
        let waits = scope.spawn(|| rest.wait(&given_up));
        given_up.store(true, Ordering::Release);
        drop(held);
        rest.wake();
        waits.join().unwrap();
    });
    assert_eq!(paged.counter("owed"), PAGES);
    paged.pager.stop();
}
