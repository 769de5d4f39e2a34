//! The store: reads from memory, writes through the one thread that has the file.

use std::{
    cell::Cell,
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc},
    thread::JoinHandle,
};

use tokio::sync::broadcast;

use crate::{
    DiskError, Error, Expect, Keys, OpenError, Record, Stored, Transaction, Watch,
    database::Database,
    state::{State, View, Write},
    watch::CHANGES_MAX,
    writer::{Accepted, Queue, Writer},
};

/// Durable records. Clones are handles to one store; the last one to go closes the file.
///
/// Calls that write wait for the disk: in asynchronous code, make them where blocking is allowed.
#[derive(Clone)]
pub struct Store(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    /// Held for the acceptance of a transaction, or the whole of one that was overtaken too often.
    turn: Mutex<()>,
    writer: Option<JoinHandle<()>>,
}

/// What the writer and those who wait for it have in common.
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    pub(crate) queue: Queue,
    pub(crate) changes: broadcast::Sender<crate::Change>,
}

impl Store {
    /// Opens the database at `path`, which is made where there is none. Its folder must be there.
    ///
    /// # Errors
    /// [`OpenError`]. The file is then as it was.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::start(Database::open(path)?)
    }

    /// A store that is gone with its last handle.
    ///
    /// # Errors
    /// [`OpenError::Sqlite`] where there is no memory for it.
    pub fn in_memory() -> Result<Self, OpenError> {
        Self::start(Database::in_memory()?)
    }

    fn start((database, state): (Database, State)) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared {
            state: RwLock::new(state),
            queue: Queue::default(),
            changes: broadcast::Sender::new(CHANGES_MAX),
        });
        let writer = Writer::new(database, Arc::clone(&shared));
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self(Arc::new(Handle { shared, turn: Mutex::new(()), writer: Some(writer) })))
    }

    /// The record of that key.
    ///
    /// # Errors
    /// [`Error::Unreadable`], [`Error::TwoTypes`].
    pub fn get<R: Record>(&self, key: &str) -> Result<Option<Stored<R>>, Error> {
        look::<R, _>(self.state(), |state| {
            let value = state.kind(R::KIND).and_then(|kind| kind.get(key, View::Settled));
            value.map(|value| value.stored()).transpose()
        })
    }

    /// The records of those keys, in their order, as they were at one moment.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub fn range<R: Record>(&self, keys: &Keys) -> Result<Vec<Stored<R>>, Error> {
        look::<R, _>(self.state(), |state| {
            let Some(kind) = state.kind(R::KIND) else { return Ok(Vec::new()) };
            kind.range(keys, View::Settled).map(|(_, value)| value.stored()).collect()
        })
    }

    /// Makes or replaces one record, if what is there is what was expected. On the disk when it returns.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put<R: Record>(&self, record: &R, expect: Expect) -> Result<(), Error> {
        self.transact(|transaction| transaction.put(record.clone(), expect))
    }

    /// Deletes one record, if what is there is what was expected. Tells whether there was one.
    ///
    /// # Errors
    /// [`Error`].
    pub fn delete<R: Record>(&self, key: &str, expect: Expect) -> Result<bool, Error> {
        self.transact(|transaction| transaction.delete::<R>(key, expect))
    }

    /// Reads and writes as if alone: all takes place and is on the disk when this returns, or nothing
    /// does. `body` does nothing else, for it is run again where another transaction came first; an error
    /// out of it ends the transaction without a trace.
    ///
    /// # Errors
    /// What `body` returns; [`Error::Disk`], [`Error::Nested`].
    pub fn transact<T, E: From<Error>>(
        &self,
        mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let _inside = Inside::enter()?;
        let mut attempts: u32 = 0;
        loop {
            let turn = (attempts >= ATTEMPTS_IN_COMPANY).then(|| lock(&self.0.turn));
            attempts = attempts.saturating_add(1);
            let mut transaction = Transaction::begin(self.state());
            let answer = body(&mut transaction);
            if transaction.is_overtaken() {
                continue;
            }
            let promised = match &answer {
                Ok(_) => self.commit(transaction, turn),
                Err(_) => self.wait_for_what_was_seen(&transaction),
            };
            match promised {
                Ok(()) => return answer,
                Err(Error::Overtaken) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Changes from now on.
    pub fn watch(&self) -> Watch {
        Watch(self.0.shared.changes.subscribe())
    }

    fn commit(&self, transaction: Transaction<'_>, turn: Option<MutexGuard<'_, ()>>) -> Result<(), Error> {
        if !transaction.has_writes() {
            return self.wait_for_what_was_seen(&transaction);
        }
        let turn = turn.unwrap_or_else(|| lock(&self.0.turn));
        let mut state = write_lock(self.state());
        if !transaction.still_true(&state) {
            return Err(Error::Overtaken);
        }
        let writes = transaction.into_writes();
        let version = state.accept(&writes);
        // Under the lock: what is accepted first is written first.
        let answer = self.enqueue(version, writes);
        drop(state);
        drop(turn);
        wait(&answer)
    }

    /// What a transaction has seen may still be on its way to the disk: nobody hears of it before.
    fn wait_for_what_was_seen(&self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let answer = {
            let state = read_lock(self.state());
            if state.refusals != transaction.refusals() {
                return Err(Error::Overtaken);
            }
            if transaction.began() <= state.settled {
                return Ok(());
            }
            self.enqueue(transaction.began(), Vec::new())
        };
        wait(&answer)
    }

    fn enqueue(&self, version: u64, writes: Vec<Write>) -> mpsc::Receiver<Result<(), DiskError>> {
        let (sender, answer) = mpsc::sync_channel(1);
        self.0.shared.queue.push(Accepted { version, writes, answer: sender });
        answer
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.0.shared.queue
    }

    fn state(&self) -> &RwLock<State> {
        &self.0.shared.state
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer ended by a panic");
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Store").finish_non_exhaustive()
    }
}

/// A thread that is inside a transaction: another one in there would wait for itself.
struct Inside;

impl Inside {
    fn enter() -> Result<Self, Error> {
        match INSIDE.replace(true) {
            false => Ok(Self),
            true => Err(Error::Nested),
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Looks at records of a type, decoding them where nobody has yet.
pub(crate) fn look<R: Record, T>(
    state: &RwLock<State>,
    look: impl FnOnce(&State) -> Result<T, Error>,
) -> Result<T, Error> {
    {
        let state = read_lock(state);
        if !state.is_raw(R::KIND) {
            return look(&state);
        }
    }
    let mut state = write_lock(state);
    state.decode::<R>()?;
    look(&state)
}

fn wait(answer: &mpsc::Receiver<Result<(), DiskError>>) -> Result<(), Error> {
    match answer.recv() {
        Ok(answer) => Ok(answer?),
        Err(mpsc::RecvError) => Err(DiskError::Closed.into()),
    }
}

// Nothing of the caller's runs under these locks, so that none is ever left half-way.

pub(crate) fn read_lock<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write_lock<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often a transaction may be overtaken before the others wait for it.
const ATTEMPTS_IN_COMPANY: u32 = 2;
