//! The pager's thread.

use std::{
    collections::VecDeque,
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use ec2vmm_devices::Memory;
use ec2vmm_snapshot::{Bitmap, PAGE_BYTES};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::{
    PagerError, Shared, State,
    owed::{PIECE_PAGES, Piece, Places, Stack},
};
use crate::{
    error::MachineError,
    mailbox::{Notice, Sender},
    report::Report,
    sandbox,
    snapshot::working_set,
    userfault::{Put, Span, Userfault},
};

/// All that the thread has.
pub(super) struct Server {
    userfault: Userfault,
    stack: Stack,
    places: Places,
    /// Held so that it is there as long as it is registered.
    _memory: Arc<Memory>,
    shared: Arc<Shared>,
    ahead: Ahead,
    /// Of one piece.
    buffer: Vec<u8>,
}

/// Starts it.
///
/// # Errors
/// The host allows no more threads.
pub(super) fn start(mut server: Server, news: Sender, report: Report) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("pager".into()).stack_size(STACK_BYTES).spawn(move || {
        sandbox::narrow(sandbox::Thread::Pager);
        let guard = AbortOnPanic;
        if let Err(error) = server.serve() {
            end_the_process(&server.shared, &error.into(), &news, &report);
        }
        mem::forget(guard);
    })
}

/// Closing the userfaultfd would have the guest go on with zeroes in the place of its memory.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// Has the event loop end the machine, of which no thread may go on that waits for a page. If it has not heard
/// of that for a while, it may be one of them: then the end is told from here.
fn end_the_process(shared: &Shared, error: &MachineError, news: &Sender, report: &Report) -> ! {
    let failure = error.failure();
    news.send(Notice::MemoryLost { failure: failure.clone() });
    wait([], Some(GRACE));
    if shared.claim_the_end() {
        let (exit, _) = report.failed(failure);
        report.finish();
        std::process::exit(exit.code().into());
    }
    loop {
        thread::park();
    }
}

impl Server {
    pub(super) fn new(
        userfault: Userfault,
        stack: Stack,
        places: Places,
        memory: Arc<Memory>,
        shared: Arc<Shared>,
        ahead: Ahead,
    ) -> Self {
        Self { userfault, stack, places, _memory: memory, shared, ahead, buffer: vec![0; PIECE_LEN] }
    }

    /// Serves until nothing is owed any more: whatever is missing then is zero, with nobody to say so.
    fn serve(&mut self) -> Result<(), PagerError> {
        let mut faults = Vec::new();
        loop {
            self.userfault.faults(&mut faults).map_err(PagerError::refused("hearing what is touched"))?;
            for address in &faults {
                self.answer(*address)?;
            }
            {
                let state = self.shared.lock();
                if state.stop || state.left == 0 {
                    return Ok(());
                }
                if state.all {
                    self.ahead.want_all();
                }
                self.ahead.plan(&state.owed, &self.stack, &self.places);
            }
            self.ahead.announce(&self.stack);
            // Those who wait come first.
            if faults.is_empty() {
                match self.ahead.next() {
                    Some(piece) => self.bring(piece, Why::Ahead).map(drop)?,
                    None => self.wait(),
                }
            }
        }
    }

    /// Waits until somebody touches something, or wants something.
    fn wait(&self) {
        let bell = &self.shared.bell;
        // SAFETY: the descriptor is open as long as `bell` is borrowed.
        let bell_fd = unsafe { BorrowedFd::borrow_raw(bell.as_raw_fd()) };
        if let [_, true] = wait([self.userfault.as_fd(), bell_fd], None) {
            // The only failure is that it has not rung.
            let _ = bell.read();
        }
    }

    /// Somebody waits for the page at this address.
    fn answer(&mut self, address: u64) -> Result<(), PagerError> {
        let outside = || PagerError::refused("finding a page")(io::ErrorKind::InvalidData.into());
        let page = self.places.page(address).ok_or_else(outside)?;
        let source = self.stack.source(&self.shared.lock().owed, page);
        let Some(file) = source else { return self.zero(page) };
        self.stack.expect_around(file, page);
        match self.bring(Piece::of_one(file, page), Why::Touched)? {
            0 => self.zero(page),
            _ => Ok(()),
        }
    }

    /// Reads a piece, and puts there what of it is still owed. How many pages that was.
    fn bring(&mut self, piece: Piece, why: Why) -> Result<u64, PagerError> {
        let is_wanted = |state: &State, page| piece.has(page) && state.owed.has(page);
        let state = self.shared.lock();
        if !(piece.first..piece.end()).any(|page| is_wanted(&state, page)) {
            return Ok(0);
        }
        drop(state);
        let bytes = |pages: u64| usize::try_from(pages * PAGE_BYTES).unwrap_or(0);
        let content = self.buffer.get_mut(..bytes(piece.count())).unwrap_or_default();
        self.stack.read(piece, content)?;
        let mut state = self.shared.lock();
        let (mut page, mut brought) = (piece.first, 0);
        while page < piece.end() {
            let count = (page..piece.end()).take_while(|&page| is_wanted(&state, page)).count() as u64;
            if count == 0 {
                page += 1;
                continue;
            }
            let at = bytes(page - piece.first);
            let content = self.buffer.get(at..at + bytes(count)).unwrap_or_default();
            // Before: then it is known to whoever goes on.
            self.note(&mut state, page, count, why);
            self.put(page, content)?;
            brought += state.forget(page..page + count);
            page += count;
        }
        if state.left == 0 {
            self.shared.done.notify_all();
        }
        Ok(brought)
    }

    fn note(&self, state: &mut State, page: u64, count: u64, why: Why) {
        let counter = match why {
            Why::Touched => &self.shared.faults,
            Why::Ahead => &self.shared.ahead,
        };
        counter.fetch_add(count, Ordering::Relaxed);
        if let (Why::Touched, Some(touched), Ok(page)) = (why, &mut state.touched, u32::try_from(page))
            && touched.len() < TOUCHED_MAX
        {
            touched.push(page);
        }
    }

    /// Puts pages there that are missing.
    fn put(&self, page: u64, content: &[u8]) -> Result<(), PagerError> {
        let refused = || PagerError::refused("putting a page there");
        let start = self.places.address(page).ok_or_else(|| refused()(io::ErrorKind::InvalidData.into()))?;
        let (mut at, mut tries) = (0, 0);
        while let Some(rest) = content.get(at..).filter(|rest| !rest.is_empty()) {
            let address = start + at as u64;
            match self.userfault.copy(address, rest).map_err(refused())? {
                Put::Some(0) if tries == TRIES_MAX => {
                    return Err(refused()(io::ErrorKind::WouldBlock.into()));
                }
                Put::Some(0) => tries += 1,
                Put::Some(bytes) => (at, tries) = (at + usize::try_from(bytes).unwrap_or(rest.len()), 0),
                Put::AlreadyThere => at += usize::try_from(PAGE_BYTES).unwrap_or(rest.len()),
            }
        }
        Ok(())
    }

    /// Somebody waits for a page that is zero. Its neighbours, if they are too, are made so on this occasion.
    fn zero(&self, page: u64) -> Result<(), PagerError> {
        let refused = || PagerError::refused("putting zeroes there");
        let end = (page + 1).next_multiple_of(PIECE_PAGES).min(self.places.end(page));
        let count = {
            let state = self.shared.lock();
            (page..end).take_while(|&page| !state.owed.has(page)).count() as u64
        };
        let start = self.places.address(page).ok_or_else(|| refused()(io::ErrorKind::InvalidData.into()))?;
        for _ in 0..=TRIES_MAX {
            // What is not owed never will be, so that this needs no lock.
            match self.userfault.zero(Span { start, len: count * PAGE_BYTES }).map_err(refused())? {
                Put::Some(0) => {}
                Put::Some(bytes) => {
                    self.shared.zeroes.fetch_add(bytes / PAGE_BYTES, Ordering::Relaxed);
                    return Ok(());
                }
                // Somebody was faster. Who has begun to wait since then is let go on.
                Put::AlreadyThere => {
                    return self.userfault.wake(Span { start, len: PAGE_BYTES }).map_err(refused());
                }
            }
        }
        Err(refused()(io::ErrorKind::WouldBlock.into()))
    }
}

/// Why pages are brought.
#[derive(Clone, Copy, Debug)]
enum Why {
    /// Somebody waits.
    Touched,
    /// Somebody may touch them later.
    Ahead,
}

/// What is brought although nobody has touched it yet.
#[derive(Debug)]
pub(super) struct Ahead {
    /// A working set.
    pages: Vec<u32>,
    next: usize,
    /// All that there is, from this page on.
    all: Option<u64>,
    /// The next pieces.
    planned: VecDeque<Piece>,
    /// How many of them the kernel knows of.
    announced: usize,
}

impl Ahead {
    /// The pages in this order, but for those that are neighbours and not far from each other in it: these are
    /// brought together.
    pub(super) fn new(mut pages: Vec<u32>) -> Self {
        pages.chunks_mut(SORTED_TOGETHER).for_each(<[u32]>::sort_unstable);
        Self { pages, next: 0, all: None, planned: VecDeque::new(), announced: 0 }
    }

    pub(super) fn want_all(&mut self) {
        self.all.get_or_insert(0);
    }

    /// Sees to it that some pieces are planned, if there are.
    pub(super) fn plan(&mut self, owed: &Bitmap, stack: &Stack, places: &Places) {
        while self.planned.len() < PLANNED_MAX {
            let Some(piece) = self.plan_one(owed, stack, places) else { return };
            self.planned.push_back(piece);
        }
    }

    fn plan_one(&mut self, owed: &Bitmap, stack: &Stack, places: &Places) -> Option<Piece> {
        if let Some(rest) = self.pages.get(self.next..).filter(|rest| !rest.is_empty()) {
            let (piece, done) = stack.piece(owed, places, rest.iter().copied().map(u64::from));
            self.next += done;
            if piece.is_some() {
                return piece;
            }
        }
        // What it was is of no use any more.
        (self.pages, self.next) = (Vec::new(), 0);
        let first = owed.next(self.all?)?;
        let (piece, _) = stack.piece(owed, places, first..first + PIECE_PAGES);
        self.all = piece.map(Piece::end);
        piece
    }

    /// Has the kernel begin to read what is planned.
    fn announce(&mut self, stack: &Stack) {
        self.planned.iter().skip(self.announced).for_each(|piece| stack.expect(*piece));
        self.announced = self.planned.len();
    }

    /// The next piece of what is planned.
    pub(super) fn next(&mut self) -> Option<Piece> {
        self.announced = self.announced.saturating_sub(1);
        self.planned.pop_front()
    }
}

/// Waits until some of these can be read, or so long. Which of them can.
fn wait<const N: usize>(these: [BorrowedFd<'_>; N], time: Option<Duration>) -> [bool; N] {
    let mut polled = these.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let time = time.map(|time| Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    if let Err(error) = rustix::event::poll(&mut polled, time.as_ref()) {
        // Whoever has called looks again.
        log::debug!("the pager waits: {error}");
    }
    polled.map(|fd| !fd.revents().is_empty())
}

const PIECE_LEN: usize = 256 * 1024;
const _: () = assert!(PIECE_LEN as u64 == PIECE_PAGES * PAGE_BYTES, "a piece fits");
/// Pages of a working set that are brought in the order of memory and not of time: 4 MiB.
const SORTED_TOGETHER: usize = 1024;
/// How many pieces the kernel reads at a time while one is brought.
const PLANNED_MAX: usize = 16;
/// See [`working_set::PAGES_MAX`].
const TOUCHED_MAX: usize = 1 << 19;
const _: () = assert!(TOUCHED_MAX as u64 == working_set::PAGES_MAX, "what is noted can be written");
/// For how long the event loop may not hear that the machine is lost.
const GRACE: Duration = Duration::from_secs(1);
/// The kernel asks to be asked again only while somebody changes mappings.
const TRIES_MAX: u32 = 1000;
const STACK_BYTES: usize = 128 * 1024;
