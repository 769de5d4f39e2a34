//! The files of a snapshot are written by a thread of its own, while the event loop serves.
//!
//! Invariants: the machine stands still until the thread has said that it is done. The state is written last and is
//! empty until then, and the memory file gets its tail just before: from files whose writing was given up no machine
//! goes on.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use ec2vmm_devices::Memory;
use ec2vmm_snapshot::Bitmap;
use uuid::Uuid;

use super::{Document, Files, TakeError, file, memory_file, pager::Rest};
use crate::{
    mailbox::{Notice, Sender},
    sandbox,
};

/// What there is to write.
pub(super) struct Job {
    pub(super) memory: Arc<Memory>,
    /// What has to be brought into memory before.
    pub(super) rest: Option<Rest>,
    pub(super) files: Files,
    pub(super) document: Document,
    /// Of a difference: the pages, and the snapshot before.
    pub(super) difference: Option<(Arc<Bitmap>, Uuid)>,
}

/// A thread that writes.
#[derive(Debug)]
pub(super) struct Writing {
    given_up: Arc<AtomicBool>,
    rest: Option<Rest>,
    thread: thread::JoinHandle<Result<u64, TakeError>>,
}

impl Writing {
    /// Starts it. It tells `news` when it is done.
    pub(super) fn start(job: Job, news: Sender) -> Result<Self, TakeError> {
        // From here on the files are no snapshot, whatever was in them.
        job.files.state.set_len(0).map_err(|source| TakeError::Write("state", source))?;
        let given_up = Arc::new(AtomicBool::new(false));
        let (heard, rest) = (Arc::clone(&given_up), job.rest.clone());
        let thread =
            thread::Builder::new().name("snapshot".into()).stack_size(STACK_BYTES).spawn(move || {
                sandbox::narrow(sandbox::Thread::Snapshot);
                let _tell = Tell(news);
                write(&job, &heard)
            });
        Ok(Self { given_up, rest, thread: thread.map_err(TakeError::Thread)? })
    }

    /// How many bytes of pages were written. Waits for the thread, which has told that it is done.
    pub(super) fn finish(self) -> Result<u64, TakeError> {
        self.thread.join().unwrap_or(Err(TakeError::Panicked))
    }

    /// Lets go of the thread, which writes at most one more piece.
    pub(super) fn give_up(self) {
        self.given_up.store(true, Ordering::Release);
        if let Some(rest) = self.rest {
            rest.wake();
        }
    }
}

/// Also where the thread panics, so that nobody waits for it for ever.
struct Tell(Sender);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.send(Notice::SnapshotWritten);
    }
}

fn write(job: &Job, given_up: &AtomicBool) -> Result<u64, TakeError> {
    let Job { memory, rest, files, document, difference } = job;
    if let Some(rest) = rest {
        rest.wait(given_up);
    }
    let changed = difference.as_ref().map(|(changed, parent)| (&**changed, *parent));
    let written = memory_file::write(memory, &files.memory, document.id, changed, given_up)?;
    write_state(document, &files.state).map_err(|source| TakeError::Write("state", source))?;
    Ok(written)
}

fn write_state(document: &Document, to: &File) -> io::Result<()> {
    let mut bytes = Vec::new();
    file::write(document, &mut bytes)?;
    to.write_all_at(&bytes, 0)
}

const STACK_BYTES: usize = 128 * 1024;
