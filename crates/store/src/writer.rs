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
    /// Reading or writing failed. Where it was the last flush that failed, nothing can be written since,
    /// and the machine stops, the refused transactions may be there after all: each of them whole.
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
        if let Err(error) = self.database.write_over() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the database still cannot be written to"
            );
        }
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

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    };

    use ec2vmm_model::networks::Network;
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::DiskError;
    use crate::{Error, Expect, Keys, Store};

    fn network(number: u64) -> Network {
        let [vpc, subnet] = ["vpc", "subnet"].map(|prefix| format!("{prefix}-{number:017x}"));
        let base = std::net::Ipv4Addr::new(10, 0, 0, 0);
        Network { vpc: vpc.parse().unwrap(), subnet: subnet.parse().unwrap(), base, prefix: 16 }
    }

    /// So many pages, of 4 KiB, may the database have.
    fn limit_pages(store: &Store, pages: u32) {
        let done = std::sync::Arc::new(Barrier::new(2));
        let reached = std::sync::Arc::clone(&done);
        store.queue().push_job(Box::new(move |writer| {
            writer.database().connection().pragma_update(None, "max_page_count", pages).unwrap();
            reached.wait();
        }));
        done.wait();
    }

    fn found(store: &Store) -> Vec<(String, u64)> {
        let found = store.range::<Network>(&Keys::all()).unwrap();
        found.iter().map(|network| (network.vpc.to_string(), network.version.as_u64())).collect()
    }

    #[test]
    fn a_full_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let store = Store::open(&path).unwrap();
        store.put(&network(0), Expect::Absent).unwrap();
        limit_pages(&store, 8);
        let mut watch = store.watch();
        let refused = store
            .transact(|transaction| {
                (1..1000).try_for_each(|number| transaction.put(network(number), Expect::Absent))?;
                transaction.delete::<Network>(network(0).vpc.as_str(), Expect::Any)
            })
            .unwrap_err();
        assert!(matches!(refused, Error::Disk(DiskError::Full { .. })), "{refused}");
        assert!(refused.hint().is_some());
        assert_eq!(watch.try_next(), Ok(None));
        assert_eq!(found(&store).len(), 1);
        limit_pages(&store, 10_000);
        store.put(&network(1), Expect::Absent).unwrap();
        let before = found(&store);
        drop(store);
        assert_eq!(found(&Store::open(&path).unwrap()), before);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// Each network that is made has the number of those before it. A thread that built on what was
        /// refused afterwards would leave a gap.
        #[test]
        fn nothing_is_built_on_what_was_refused(pages in 4_u32..12, seed in any::<u8>()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("db");
            let store = Store::open(&path).unwrap();
            limit_pages(&store, pages);
            let refused = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..6 {
                    scope.spawn(|| (0..60).for_each(|turn| {
                        let made = store.transact(|transaction| {
                            let number = transaction.range::<Network>(&Keys::all())?.len();
                            transaction.put(network(u64::try_from(number).unwrap()), Expect::Absent)?;
                            Ok::<_, Error>(number)
                        });
                        match made {
                            Ok(number) => assert!(found(&store).len() > number),
                            Err(Error::Disk(DiskError::Full { .. })) => refused.store(true, Ordering::Relaxed),
                            Err(error) => panic!("{error}"),
                        }
                        if turn == seed % 60 {
                            limit_pages(&store, pages + 2);
                        }
                    }));
                }
            });
            let found_in_memory = found(&store);
            drop(store);
            let store = Store::open(&path).unwrap();
            assert_eq!(found(&store), found_in_memory);
            let expected: Vec<_> = (0..).map(|number| network(number).vpc.to_string()).take(found_in_memory.len()).collect();
            assert_eq!(found(&store).into_iter().map(|(vpc, _)| vpc).collect::<Vec<_>>(), expected);
            assert!(refused.load(Ordering::Relaxed), "the limit was never reached");
        }
    }
}
