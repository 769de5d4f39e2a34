//! The one thread that has the file. What was accepted while the disk was busy goes to it together.
//!
//! Invariant: transactions reach the disk in the order in which they were accepted. Where it refuses some,
//! all that were accepted after are refused too, for they may have seen them.

use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc::SyncSender};

use crate::{
    Change, What,
    database::Database,
    state::Write,
    store::{Shared, lock, write_lock},
};

/// Why the disk has not got a transaction.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DiskError {
    /// There is no room.
    #[error("no room for the database on its disk")]
    Full {
        /// What SQLite says.
        source: Arc<rusqlite::Error>,
    },
    /// It may not be written to.
    #[error("the database may not be written to")]
    ReadOnly {
        /// What SQLite says.
        source: Arc<rusqlite::Error>,
    },
    /// Reading or writing failed. Where it was the last flush that failed, and the machine stops before
    /// the next transaction, the refused ones may be there after all: each of them whole.
    #[error("the database cannot be read or written")]
    Io {
        /// What SQLite says.
        source: Arc<rusqlite::Error>,
    },
    /// The file is damaged.
    #[error("the database is damaged")]
    Damaged {
        /// What SQLite says.
        source: Arc<rusqlite::Error>,
    },
    /// The store was closed.
    #[error("the store was closed")]
    Closed,
}

impl DiskError {
    /// What people can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Full { .. } => {
                Some("make room on the disk: nothing was lost, and nothing need be restarted")
            }
            Self::ReadOnly { .. } => Some("look whether the file system was remounted read-only"),
            Self::Io { .. } => Some("look for disk errors in the kernel's log"),
            Self::Damaged { .. } => Some("put back what `ec2vmm backup` has written"),
            Self::Closed => None,
        }
    }
}

impl From<rusqlite::Error> for DiskError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        let code = error.sqlite_error_code();
        let source = Arc::new(error);
        match code {
            Some(ErrorCode::DiskFull) => Self::Full { source },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly { source },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged { source },
            _ => Self::Io { source },
        }
    }
}

/// A transaction on its way to the disk, and who waits for it. One without writes waits for those before.
pub(crate) struct Accepted {
    pub(crate) version: u64,
    pub(crate) writes: Vec<Write>,
    pub(crate) answer: SyncSender<Result<(), DiskError>>,
}

/// Something else to do with the file, between two batches.
pub(crate) type Job = Box<dyn FnOnce(&Writer) + Send>;

/// What waits for the writer. Everybody who adds to it waits for the answer, so it holds no more than one
/// entry for each thread.
#[derive(Default)]
pub(crate) struct Queue {
    work: Mutex<Work>,
    ready: Condvar,
}

#[derive(Default)]
struct Work {
    accepted: Vec<Accepted>,
    jobs: Vec<Job>,
    closed: bool,
}

impl Queue {
    pub(crate) fn push(&self, accepted: Accepted) {
        lock(&self.work).accepted.push(accepted);
        self.ready.notify_one();
    }

    pub(crate) fn push_job(&self, job: Job) {
        lock(&self.work).jobs.push(job);
        self.ready.notify_one();
    }

    pub(crate) fn close(&self) {
        lock(&self.work).closed = true;
        self.ready.notify_one();
    }

    fn take_accepted(&self) -> Vec<Accepted> {
        std::mem::take(&mut lock(&self.work).accepted)
    }

    /// Waits for work; none is left once the store is closed.
    fn wait(&self) -> Option<(Vec<Accepted>, Vec<Job>)> {
        let mut work = lock(&self.work);
        loop {
            if !work.accepted.is_empty() || !work.jobs.is_empty() {
                return Some((std::mem::take(&mut work.accepted), std::mem::take(&mut work.jobs)));
            }
            if work.closed {
                return None;
            }
            work = self.ready.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The thread's own.
pub(crate) struct Writer {
    database: Database,
    shared: Arc<Shared>,
}

impl Writer {
    pub(crate) fn new(database: Database, shared: Arc<Shared>) -> Self {
        Self { database, shared }
    }

    pub(crate) fn run(self) {
        while let Some((batch, jobs)) = self.shared.queue.wait() {
            self.commit(batch);
            for job in jobs {
                job(&self);
            }
        }
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// Writes what waits, if anything does.
    pub(crate) fn commit_waiting(&self) {
        self.commit(self.shared.queue.take_accepted());
    }

    fn commit(&self, batch: Vec<Accepted>) {
        if batch.is_empty() {
            return;
        }
        match self.database.write(&batch) {
            Ok(()) => self.settle(&batch),
            Err(error) => self.refuse(batch, &error.into()),
        }
    }

    fn settle(&self, batch: &[Accepted]) {
        {
            let mut state = write_lock(&self.shared.state);
            for accepted in batch {
                state.settle(accepted.version, &accepted.writes);
            }
        }
        for accepted in batch {
            for write in &accepted.writes {
                // Fails where nobody watches.
                let _ = self.shared.changes.send(Change {
                    version: crate::Version(accepted.version),
                    kind: write.kind,
                    key: Arc::clone(&write.key),
                    what: if write.content.is_some() { What::Put } else { What::Deleted },
                });
            }
        }
        for accepted in batch {
            // Fails where the waiting thread is gone.
            let _ = accepted.answer.send(Ok(()));
        }
    }

    fn refuse(&self, mut batch: Vec<Accepted>, error: &DiskError) {
        tracing::error!(
            error = error as &dyn std::error::Error,
            transactions = batch.len(),
            "transactions could not be written"
        );
        {
            let mut state = write_lock(&self.shared.state);
            // Nobody accepts while the lock is held: these are all that may have seen the refused ones.
            batch.extend(self.shared.queue.take_accepted());
            for accepted in &batch {
                state.take_back(&accepted.writes);
            }
            state.settled = state.head;
            state.refusals += 1;
        }
        for accepted in batch {
            let _ = accepted.answer.send(Err(error.clone()));
        }
    }
}
