//! What happened: a bounded log of all, and of each instance how its last start went.
//!
//! Invariant: an event is written in the transaction that makes it happen, and its sequence number follows
//! from that transaction's version: who has seen one has seen all that came before.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ec2vmm_model::{Time, ids::InstanceId, lifecycle::State};
use ec2vmm_store::{Expect, Keys, Record, Store, Stored, Transaction, Watch, WatchError};
use serde::{Deserialize, Serialize};

use crate::{Cloud, Error, error::Noun, ids, instances};

/// Something that happened.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Event {
    /// Counted up: what comes later has a greater one. Some numbers are left out.
    pub sequence: u64,
    /// When.
    pub time: Time,
    /// To which instance.
    pub instance: Option<InstanceId>,
    /// What.
    pub kind: EventKind,
    /// In words, one line.
    pub message: String,
}

/// What happened.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum EventKind {
    /// An instance was launched.
    Launched,
    /// Its state changed.
    StateChanged {
        /// From.
        from: State,
        /// To.
        to: State,
    },
    /// A reboot was asked for.
    RebootRequested,
    /// It rebooted, by itself or on request.
    Rebooted,
    /// The guest's kernel panicked.
    Panicked,
    /// An attribute or tags were changed.
    Modified,
    /// Its processor time is limited, or no longer.
    Throttled,
    /// A step failed, and will be tried again.
    StepFailed,
    /// A later daemon found the machine running.
    Adopted,
    /// The machine ended, or was found gone.
    MachineEnded,
    /// Something on the host that belonged to nobody was removed.
    Swept,
}

/// How the last start of an instance went.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Timeline {
    /// Which.
    pub instance: InstanceId,
    /// Which of its starts.
    pub generation: u64,
    /// When it was asked for.
    pub requested: Time,
    /// The steps, in order.
    pub steps: Vec<TimelineStep>,
}

/// One step of a start.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TimelineStep {
    /// Such as `create volume`.
    pub name: String,
    /// From the request to the step's begin, microseconds.
    pub begin_us: u64,
    /// What it took, microseconds.
    pub took_us: u64,
}

/// Which events.
#[derive(Clone, Debug, Default)]
pub struct DescribeEvents {
    /// Of this instance.
    pub instance: Option<String>,
    /// After this one.
    pub after: Option<u64>,
    /// At most so many, the earliest first. Nothing: 1,000.
    pub max_results: Option<u32>,
}

impl Cloud {
    /// Events of the past, the earliest first.
    ///
    /// # Errors
    /// A count out of range, an instance that is not there.
    pub async fn describe_events(&self, what: &DescribeEvents) -> Result<Vec<Arc<Event>>, Error> {
        let limit = match what.max_results.unwrap_or(EVENTS_PAGE_MAX) {
            limit @ 1..=EVENTS_PAGE_MAX => usize::try_from(limit).unwrap_or(usize::MAX),
            other => {
                return Err(Error::InvalidValue {
                    message: format!(
                        "Value ( {other} ) for parameter maxResults is invalid. Expecting a value between 1 and 1000."
                    ),
                    hint: None,
                });
            }
        };
        let id = what.instance.as_deref();
        let instance = id.map(|id| ids::parse::<InstanceId>(id, Noun::Instance)).transpose()?;
        let mut log = self.inner.log.memory();
        log.catch_up(&self.inner.store)?;
        let after = what.after.unwrap_or(0).saturating_add(1);
        let events = log.events.range(after..).map(|(_, (_, event))| event);
        let wanted = events.filter(|event| instance.is_none() || event.instance == instance);
        let wanted: Vec<Arc<Event>> = wanted.take(limit).cloned().collect();
        drop(log);
        // What happened to it is told for longer than it is shown itself.
        if let Some(id) = id.filter(|_| wanted.is_empty()) {
            instances::find(&self.inner.store, id)?;
        }
        Ok(wanted)
    }

    /// All events after one (nothing: from now on), as they come. Those that are forgotten already are left
    /// out.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn follow_events(&self, after: Option<u64>) -> Result<EventStream, Error> {
        let store = self.inner.store.clone();
        // First the watch, then the past: what comes between is in both, and told once.
        let watch = store.watch();
        let mut log = self.inner.log.memory();
        log.catch_up(&store)?;
        let last = log.events.last_key_value().map_or(0, |(sequence, _)| *sequence);
        // Nobody has seen what is yet to come: the number is of before a backup was put back.
        let seen = after.map_or(last, |after| after.min(last));
        let backlog =
            log.events.range(seen.saturating_add(1)..).map(|(_, (_, event))| Arc::clone(event)).collect();
        drop(log);
        Ok(EventStream { cloud: self.clone(), watch, backlog, seen, over: self.inner.over.subscribe() })
    }

    /// How the last start of an instance went: nothing where it never got so far.
    ///
    /// # Errors
    /// There is no such instance.
    pub async fn timeline(&self, id: &str) -> Result<Option<Arc<Timeline>>, Error> {
        let instance = instances::find(&self.inner.store, id)?;
        let timeline = self.inner.store.get::<Timeline>(instance.id.as_str())?;
        Ok(timeline.map(|timeline| timeline.record))
    }
}

/// Events as they come.
pub struct EventStream {
    cloud: Cloud,
    watch: Watch,
    backlog: VecDeque<Arc<Event>>,
    seen: u64,
    over: tokio::sync::watch::Receiver<bool>,
}

impl EventStream {
    /// The next one; nothing once the cloud is shut down. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            while let Some(event) = self.backlog.pop_front() {
                if event.sequence > self.seen {
                    self.seen = event.sequence;
                    return Some(event);
                }
            }
            let change = tokio::select! {
                change = self.watch.next() => change,
                _ = self.over.wait_for(|over| *over) => return None,
            };
            match change {
                Ok(change) if change.kind == LoggedEvent::KIND => {
                    // One that is forgotten already is left out, and so is what cannot be read.
                    let found = self.cloud.inner.store.get::<LoggedEvent>(&change.key).ok().flatten();
                    self.backlog.extend(found.map(|found| Arc::new(event_of(&found))));
                }
                Ok(_) => {}
                Err(WatchError::Lagged { .. }) => {
                    let mut log = self.cloud.inner.log.memory();
                    log.catch_up(&self.cloud.inner.store).ok()?;
                    let missed = log.events.range(self.seen.saturating_add(1)..);
                    self.backlog.extend(missed.map(|(_, (_, event))| Arc::clone(event)));
                }
                Err(WatchError::Closed) => return None,
            }
        }
    }
}

/// What is to be logged.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) instance: Option<InstanceId>,
    pub(crate) kind: EventKind,
    pub(crate) message: String,
}

/// An event as the store keeps it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct LoggedEvent {
    /// Tells it from all others.
    number: u64,
    /// Its place among those of its transaction.
    index: u64,
    time: Time,
    instance: Option<InstanceId>,
    kind: EventKind,
    message: String,
}

impl Record for LoggedEvent {
    const KIND: &'static str = "event";

    fn key(&self) -> String {
        format!("{:020}", self.number)
    }
}

impl Record for Timeline {
    const KIND: &'static str = "timeline";

    fn key(&self) -> String {
        self.instance.to_string()
    }
}

/// The log.
pub(crate) struct Log {
    next: AtomicU64,
    memory: Mutex<Memory>,
}

/// What is remembered, in the order in which it happened, and where each is by its key.
struct Memory {
    watch: Watch,
    events: BTreeMap<u64, (String, Arc<Event>)>,
    sequences: HashMap<String, u64>,
}

impl Log {
    pub(crate) fn open(store: &Store) -> Result<Self, Error> {
        let mut memory = Memory { watch: store.watch(), events: BTreeMap::new(), sequences: HashMap::new() };
        let last = memory.read_all(store)?;
        Ok(Self { next: AtomicU64::new(last + 1), memory: Mutex::new(memory) })
    }

    /// Writes events in this transaction, after all that it has written before. Once in a transaction.
    pub(crate) fn write(
        &self,
        transaction: &mut Transaction<'_>,
        now: Time,
        entries: impl IntoIterator<Item = Entry>,
    ) -> Result<(), Error> {
        for (index, Entry { instance, kind, message }) in (0..).zip(entries) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let event = LoggedEvent { number, index, time: now, instance, kind, message };
            transaction.put(event, Expect::Any)?;
        }
        Ok(())
    }

    /// The keys of the events that are too many, the oldest.
    pub(crate) fn excess(&self, store: &Store, max: usize) -> Result<Vec<String>, Error> {
        let mut memory = self.memory();
        memory.catch_up(store)?;
        let excess = memory.events.len().saturating_sub(max).min(TRIMMED_AT_ONCE_MAX);
        Ok(memory.events.values().take(excess).map(|(key, _)| key.clone()).collect())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn catch_up(&mut self, store: &Store) -> Result<(), Error> {
        loop {
            match self.watch.try_next() {
                Ok(Some(change)) if change.kind == LoggedEvent::KIND => {
                    match store.get::<LoggedEvent>(&change.key)? {
                        Some(found) => self.remember(&found),
                        None => self.forget(&change.key),
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(WatchError::Closed) => return Ok(()),
                Err(WatchError::Lagged { .. }) => {
                    self.read_all(store)?;
                }
            }
        }
    }

    fn read_all(&mut self, store: &Store) -> Result<u64, Error> {
        self.events.clear();
        self.sequences.clear();
        let found = store.range::<LoggedEvent>(&Keys::all())?;
        found.iter().for_each(|event| self.remember(event));
        Ok(found.last().map_or(0, |event| event.number))
    }

    fn remember(&mut self, found: &Stored<LoggedEvent>) {
        let event = event_of(found);
        self.sequences.insert(found.key(), event.sequence);
        self.events.insert(event.sequence, (found.key(), Arc::new(event)));
    }

    fn forget(&mut self, key: &str) {
        if let Some(sequence) = self.sequences.remove(key) {
            self.events.remove(&sequence);
        }
    }
}

fn event_of(found: &Stored<LoggedEvent>) -> Event {
    let LoggedEvent { number: _, index, time, instance, kind, message } = &*found.record;
    Event {
        sequence: found.version.as_u64().saturating_mul(EVENTS_PER_TRANSACTION).saturating_add(*index),
        time: *time,
        instance: instance.clone(),
        kind: kind.clone(),
        message: message.clone(),
    }
}

/// What is said of a machine that has rebooted.
pub(crate) const BOOTS_AGAIN: &str = "the machine boots again";
/// More than any transaction writes: a launch writes one for each instance.
const EVENTS_PER_TRANSACTION: u64 = 4_096;
/// The most that one request can list.
const EVENTS_PAGE_MAX: u32 = 1_000;
/// Events that are forgotten in one transaction.
const TRIMMED_AT_ONCE_MAX: usize = 1_000;
