//! Brings guest memory in, page by page, when it is first touched: out of a snapshot's memory files, by
//! userfaultfd(2), on a thread of its own. Pages of a recorded working set it brings ahead, in large pieces,
//! between one page that is waited for and the next.
//!
//! ```text
//!   owed ──touched, or ahead──► there ──discarded──► zero, by itself or by us
//!     └──────────discarded─────────────────────────────┘
//! ```
//!
//! Invariants: a page is owed until it was brought or discarded, and is then never brought (again). A page that
//! is missing and not owed is zero. Who waits for a page waits for what is under way, at most one piece, and for
//! its own. The memory files are read by position, so that many machines can read them at once.
//!
//! Where the files cannot be read any more, whoever waits for a page waits for ever, and nothing but the end of
//! the process frees him. The event loop brings that about, or if it waits itself, the pager.

mod owed;
mod thread;

use std::{
    fs::File,
    io,
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use ec2vmm_devices::Memory;
use ec2vmm_snapshot::{Bitmap, MemoryFileError, Tail};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::{
    owed::{Places, Stack},
    thread::{Ahead, Server},
};
use super::working_set::{self, Whose};
use crate::{mailbox::Sender, report::Report, userfault::Userfault};

/// Guest memory cannot be brought in, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// A memory file cannot be read any more.
    #[error(transparent)]
    File(#[from] MemoryFileError),
    /// The host refused.
    #[error("bringing guest memory in: {what}")]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl PagerError {
    fn refused(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Refused { what, source }
    }
}

/// What there is to bring in, and by what.
pub(super) struct Parts {
    pub(super) userfault: Userfault,
    /// The full file first.
    pub(super) files: Vec<(File, Tail)>,
    /// Pages to bring ahead, in this order.
    pub(super) ahead: Vec<u32>,
    /// Where to write which pages are touched.
    pub(super) record: Option<(File, Whose)>,
}

/// The pager of a machine, from its restore to its reset or end.
pub(crate) struct Pager {
    shared: Arc<Shared>,
    record: Option<(File, Whose)>,
    thread: JoinHandle<()>,
}

/// What the pager's thread and others share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// All is there.
    done: Condvar,
    /// There is something new in `state`.
    bell: EventFd,
    /// Somebody ends the process.
    ending: AtomicBool,
    faults: AtomicU64,
    zeroes: AtomicU64,
    ahead: AtomicU64,
}

#[derive(Debug)]
struct State {
    owed: Bitmap,
    /// How many are in it.
    left: u64,
    /// All of them are wanted now.
    all: bool,
    /// None of them is wanted any more.
    stop: bool,
    /// Pages that were brought because they were touched.
    touched: Option<Vec<u32>>,
}

impl Pager {
    /// Registers `memory`, which is fresh, and starts the thread. From here on the memory holds what the files
    /// hold.
    ///
    /// # Errors
    /// The host refused.
    pub(super) fn start(
        memory: Arc<Memory>,
        parts: Parts,
        news: Sender,
        report: Report,
    ) -> Result<Self, PagerError> {
        let Parts { userfault, files, ahead, record } = parts;
        let places = Places::of(&memory);
        let stack = Stack::new(files, places.pages());
        let owed = stack.pages(places.pages());
        for span in places.blocks(&owed) {
            userfault.register(span).map_err(PagerError::refused("registering guest memory"))?;
        }
        let bell = EventFd::new(EFD_NONBLOCK).map_err(PagerError::refused("making an eventfd"))?;
        let state = State {
            left: owed.count(),
            owed,
            all: false,
            stop: false,
            touched: record.as_ref().map(|_| Vec::new()),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            done: Condvar::new(),
            bell,
            ending: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            zeroes: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
        });
        let server = Server::new(userfault, stack, places, memory, Arc::clone(&shared), Ahead::new(ahead));
        let thread = thread::start(server, news, report);
        let thread = thread.map_err(PagerError::refused("starting its thread"))?;
        Ok(Self { shared, record, thread })
    }

    /// For who discards pages.
    pub(crate) fn discards(&self) -> Discards {
        Discards(Arc::clone(&self.shared))
    }

    /// Brings all that is still owed, in large pieces. If it cannot be brought, the process ends meanwhile.
    pub(super) fn bring_all(&self) -> Rest {
        self.shared.lock().all = true;
        self.shared.ring();
        Rest(Arc::clone(&self.shared))
    }

    /// Writes down which pages were touched, and notes no more. None: it was not asked for, or was done before. An
    /// error changes nothing.
    pub(crate) fn record(&mut self) -> Option<io::Result<u64>> {
        let (file, whose) = self.record.as_ref()?;
        let touched = self.shared.lock().touched.clone().unwrap_or_default();
        let written = working_set::write(file, *whose, &touched);
        if written.is_ok() {
            self.record = None;
            self.shared.lock().touched = None;
        }
        Some(written.map(|()| touched.len() as u64))
    }

    /// Ends it, and waits for that. Nobody touches the memory any more, or only to find zeroes in what was
    /// missing.
    pub(crate) fn stop(self) {
        let mut state = self.shared.lock();
        state.stop = true;
        // What is discarded later is not ours.
        (state.owed, state.left) = (Bitmap::new(0), 0);
        drop(state);
        self.shared.ring();
        if self.thread.join().is_err() {
            log::error!("the pager has panicked");
        }
    }

    /// Its counters: pages that were brought because they were touched, pages of zeroes likewise, pages that
    /// were brought ahead, pages that are still owed.
    pub(crate) fn metrics(&self) -> Vec<(&'static str, u64)> {
        let Shared { faults, zeroes, ahead, .. } = &*self.shared;
        let counters = [("faults", faults), ("zeroes", zeroes), ("prefetched", ahead)];
        let mut metrics = counters.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).to_vec();
        metrics.push(("owed", self.shared.lock().left));
        metrics
    }

    /// Whether it is for the caller to end the process, whose memory is lost: true only once.
    pub(crate) fn claim_the_end(&self) -> bool {
        self.shared.claim_the_end()
    }
}

/// All that is still owed, on its way.
#[derive(Clone, Debug)]
pub(super) struct Rest(Arc<Shared>);

impl Rest {
    /// Waits until all is there, or it was given up.
    pub(super) fn wait(&self, given_up: &AtomicBool) {
        let Self(shared) = self;
        let mut state = shared.lock();
        while state.left > 0 && !given_up.load(Ordering::Acquire) {
            state = shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Who waits looks again whether it was given up.
    pub(super) fn wake(&self) {
        let Self(shared) = self;
        // With the lock, he is either before his look or in his wait.
        let state = shared.lock();
        shared.done.notify_all();
        drop(state);
    }
}

/// Keeps pages that are discarded from being brought.
#[derive(Clone, Debug)]
pub(crate) struct Discards(Arc<Shared>);

impl Discards {
    /// Has `act` discard these pages of RAM.
    pub(crate) fn discard<T>(&self, pages: Range<u64>, act: impl FnOnce() -> T) -> T {
        let Self(shared) = self;
        // Held meanwhile, so that none of them is brought behind our back.
        let mut state = shared.lock();
        let were_owed = state.left > 0;
        state.forget(pages);
        let result = act();
        if were_owed && state.left == 0 {
            shared.done.notify_all();
            shared.ring();
        }
        result
    }
}

impl Shared {
    fn claim_the_end(&self) -> bool {
        !self.ending.swap(true, Ordering::AcqRel)
    }

    fn ring(&self) {
        // The only failure is a bell that rings already.
        let _ = self.bell.write(1);
    }

    /// Nobody touches guest memory while he holds it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// These pages are owed no more. How many of them were.
    fn forget(&mut self, pages: Range<u64>) -> u64 {
        let cleared = self.owed.clear(pages);
        self.left -= cleared;
        cleared
    }
}

#[cfg(test)]
mod tests;
