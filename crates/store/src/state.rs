//! What the store holds in memory: every record, decoded, as it is on the disk and as it will be once the
//! transactions that are under way are there.
//!
//! Invariant: the settled side of a slot is what the disk holds. The latest side differs from it only
//! between a transaction's acceptance and the end of the batch that writes it.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{DiskError, Expect, Keys, Record, Stored, Version};

/// Why a record cannot be had, or a transaction did not take place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something else is there than what the write was meant for.
    #[error("{kind} {key}: expected {expected}, found {}", found.map_or("nothing".to_owned(), |version| format!("version {version}")))]
    Conflict {
        /// The record's kind.
        kind: &'static str,
        /// The record's key.
        key: String,
        /// What should be there.
        expected: Expect,
        /// What is there.
        found: Option<Version>,
    },
    /// Another transaction came first. [`crate::Store::transact`] begins again by itself: pass it on.
    #[error("another transaction came first")]
    Overtaken,
    /// A transaction was begun inside a transaction.
    #[error("a transaction was begun inside a transaction")]
    Nested,
    /// What is on the disk is not a record of this kind.
    #[error("{kind} {key} cannot be read")]
    Unreadable {
        /// The record's kind.
        kind: &'static str,
        /// The record's key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The record cannot be written as JSON.
    #[error("{kind} {key} cannot be written as JSON")]
    Unwritable {
        /// The record's kind.
        kind: &'static str,
        /// The record's key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The record, or its key, is larger than any may be.
    #[error("{kind}: {what} has {bytes} bytes, allowed are 1 to {limit_bytes}")]
    Size {
        /// The record's kind.
        kind: &'static str,
        /// The record, or its key.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The most that it may have.
        limit_bytes: usize,
    },
    /// Two types claim to be one kind.
    #[error("there are two types of {kind}")]
    TwoTypes {
        /// The kind.
        kind: &'static str,
    },
    /// The transaction is not on the disk. Everything is as before.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Error {
    /// What people can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Disk(error) => error.hint(),
            Self::Unreadable { .. } => Some("the database was written by another version, or damaged"),
            _ => None,
        }
    }
}

/// Everything in memory.
#[derive(Default)]
pub(crate) struct State {
    kinds: HashMap<Box<str>, Kind>,
    /// The last transaction that was accepted.
    pub(crate) head: u64,
    /// The last transaction that was decided: on the disk, or refused by it.
    pub(crate) settled: u64,
    /// How often the disk has refused: what was read before that may never have been.
    pub(crate) refusals: u64,
}

/// Which side of the slots is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum View {
    /// What is on the disk.
    Settled,
    /// What will be, once the transactions under way are there.
    Latest,
}

/// Records of one kind.
#[derive(Default)]
pub(crate) struct Kind {
    slots: BTreeMap<Arc<str>, Slot>,
    /// There may be records here that have not been decoded since they were loaded.
    raw: bool,
    /// The last transaction that was accepted with a write here.
    changed: u64,
    /// The last transaction that was accepted with a deletion here.
    deleted: u64,
}

#[derive(Default)]
struct Slot {
    settled: Option<Value>,
    latest: Latest,
}

#[derive(Default)]
enum Latest {
    #[default]
    AsSettled,
    Put(Value),
    Deleted(u64),
}

/// A record, and the transaction that wrote it.
#[derive(Clone)]
pub(crate) struct Value {
    pub(crate) version: Version,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Json(Box<str>),
    Decoded(Decoded),
}

/// A record of a type that only its reader knows.
pub(crate) type Decoded = Arc<dyn Any + Send + Sync>;

/// A write, as it goes to the memory and to the disk.
pub(crate) struct Write {
    pub(crate) kind: &'static str,
    pub(crate) key: Arc<str>,
    pub(crate) content: Option<Content>,
}

/// What a write puts; none where it deletes.
pub(crate) struct Content {
    pub(crate) decoded: Decoded,
    pub(crate) json: String,
}

impl State {
    /// Takes in what the disk holds.
    pub(crate) fn load(&mut self, kind: &str, key: &str, version: u64, json: String) {
        let kind = self.kinds.entry(kind.into()).or_default();
        kind.raw = true;
        let value = Value { version: Version(version), body: Body::Json(json.into_boxed_str()) };
        kind.slots.insert(key.into(), Slot { settled: Some(value), latest: Latest::AsSettled });
    }

    pub(crate) fn kind(&self, kind: &str) -> Option<&Kind> {
        self.kinds.get(kind)
    }

    /// Whether [`Self::decode`] must come first.
    pub(crate) fn is_raw(&self, kind: &str) -> bool {
        self.kinds.get(kind).is_some_and(|kind| kind.raw)
    }

    /// Decodes what was loaded of a kind: once, at its first use.
    pub(crate) fn decode<R: Record>(&mut self) -> Result<(), Error> {
        let Some(kind) = self.kinds.get_mut(R::KIND).filter(|kind| kind.raw) else { return Ok(()) };
        for (key, slot) in &mut kind.slots {
            let Some(value) = &mut slot.settled else { continue };
            let Body::Json(json) = &value.body else { continue };
            let record: R = serde_json::from_str(json).map_err(|source| Error::Unreadable {
                kind: R::KIND,
                key: key.to_string(),
                source,
            })?;
            value.body = Body::Decoded(Arc::new(record));
        }
        kind.raw = false;
        Ok(())
    }

    /// Makes writes visible to the transactions that come after.
    pub(crate) fn accept(&mut self, writes: &[Write]) -> u64 {
        self.head += 1;
        for write in writes {
            let kind = self.kinds.entry(write.kind.into()).or_default();
            kind.changed = self.head;
            let slot = kind.slots.entry(Arc::clone(&write.key)).or_default();
            slot.latest = match &write.content {
                Some(content) => Latest::Put(Value {
                    version: Version(self.head),
                    body: Body::Decoded(Arc::clone(&content.decoded)),
                }),
                None => {
                    kind.deleted = self.head;
                    Latest::Deleted(self.head)
                }
            };
        }
        self.head
    }

    /// Makes writes visible to all: they are on the disk.
    pub(crate) fn settle(&mut self, version: u64, writes: &[Write]) {
        for write in writes {
            let Some(kind) = self.kinds.get_mut(write.kind) else { continue };
            let Some(slot) = kind.slots.get_mut(&write.key) else { continue };
            slot.settled = write.content.as_ref().map(|content| Value {
                version: Version(version),
                body: Body::Decoded(Arc::clone(&content.decoded)),
            });
            let is_latest = match &slot.latest {
                Latest::AsSettled => true,
                Latest::Put(value) => value.version.0 == version,
                Latest::Deleted(deleted) => *deleted == version,
            };
            if is_latest {
                slot.latest = Latest::AsSettled;
                if slot.settled.is_none() {
                    kind.slots.remove(&write.key);
                }
            }
        }
        self.settled = self.settled.max(version);
    }

    /// Takes writes back: the disk has refused them.
    pub(crate) fn take_back(&mut self, writes: &[Write]) {
        for write in writes {
            let Some(kind) = self.kinds.get_mut(write.kind) else { continue };
            let Some(slot) = kind.slots.get_mut(&write.key) else { continue };
            slot.latest = Latest::AsSettled;
            if slot.settled.is_none() {
                kind.slots.remove(&write.key);
            }
        }
    }
}

impl Kind {
    pub(crate) fn get(&self, key: &str, view: View) -> Option<&Value> {
        self.slots.get(key)?.value(view)
    }

    pub(crate) fn range<'k>(
        &'k self,
        keys: &Keys,
        view: View,
    ) -> impl Iterator<Item = (&'k Arc<str>, &'k Value)> + use<'k> {
        let slots = keys.bounds().map(|bounds| self.slots.range::<str, _>(bounds));
        let values =
            slots.into_iter().flatten().filter_map(move |(key, slot)| Some((key, slot.value(view)?)));
        values.take(keys.limit)
    }

    /// Whether a write was accepted here after that transaction.
    pub(crate) fn changed_since(&self, version: u64) -> bool {
        self.changed > version
    }

    /// Whether a deletion was accepted here after that transaction.
    pub(crate) fn deleted_since(&self, version: u64) -> bool {
        self.deleted > version
    }
}

impl Slot {
    fn value(&self, view: View) -> Option<&Value> {
        match (view, &self.latest) {
            (View::Settled, _) | (View::Latest, Latest::AsSettled) => self.settled.as_ref(),
            (View::Latest, Latest::Put(value)) => Some(value),
            (View::Latest, Latest::Deleted(_)) => None,
        }
    }
}

impl Value {
    pub(crate) fn stored<R: Record>(&self) -> Result<Stored<R>, Error> {
        match &self.body {
            Body::Decoded(decoded) => stored(decoded, self.version),
            // A kind is decoded before it is looked at.
            Body::Json(_) => Err(Error::TwoTypes { kind: R::KIND }),
        }
    }
}

pub(crate) fn stored<R: Record>(decoded: &Decoded, version: Version) -> Result<Stored<R>, Error> {
    let record = Arc::clone(decoded).downcast().map_err(|_| Error::TwoTypes { kind: R::KIND })?;
    Ok(Stored { record, version })
}
