//! Transactions: reads that must still be true, and writes that all take place or none.
//!
//! Invariant: what a transaction has read is one state of the store, the one at its beginning. Where
//! that cannot be had any more the transaction is overtaken, and begins again.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{Arc, RwLock},
};

use crate::{
    Error, Expect, Keys, Record, Stored, Version,
    record::{KEY_BYTES_MAX, RECORD_BYTES_MAX},
    state::{Content, State, View, Write, stored},
    store::{look, read_lock},
};

/// A transaction under way. It sees its own writes.
pub struct Transaction<'s> {
    state: &'s RwLock<State>,
    began: u64,
    refusals: u64,
    overtaken: bool,
    read: HashMap<(&'static str, String), Option<Version>>,
    ranges: Vec<RangeRead>,
    writes: BTreeMap<Name, Option<Content>>,
}

/// A record's kind and key.
type Name = (&'static str, Arc<str>);

/// A range as it was read: any record that came since has a newer version, any that went is missing.
struct RangeRead {
    kind: &'static str,
    keys: Keys,
    found: usize,
}

impl<'s> Transaction<'s> {
    pub(crate) fn begin(state: &'s RwLock<State>) -> Self {
        let (began, refusals) = {
            let state = read_lock(state);
            (state.head, state.refusals)
        };
        Self {
            state,
            began,
            refusals,
            overtaken: false,
            read: HashMap::new(),
            ranges: Vec::new(),
            writes: BTreeMap::new(),
        }
    }

    /// The record of that key.
    ///
    /// # Errors
    /// [`Error::Overtaken`] is to be passed on; [`Error::Unreadable`], [`Error::TwoTypes`].
    pub fn get<R: Record>(&mut self, key: &str) -> Result<Option<Stored<R>>, Error> {
        if let Some(content) = self.writes.get(&(R::KIND, Arc::from(key))) {
            let own = content.as_ref().map(|content| stored(&content.decoded, Version::UNCOMMITTED));
            return own.transpose();
        }
        let found = self.base::<R>(key)?;
        let version = found.as_ref().map(|found| found.version);
        self.read.insert((R::KIND, key.to_owned()), version);
        Ok(found)
    }

    /// The records of those keys, in their order.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub fn range<R: Record>(&mut self, keys: &Keys) -> Result<Vec<Stored<R>>, Error> {
        if keys.limit == 0 {
            return Ok(Vec::new());
        }
        let own: Vec<_> =
            self.writes.iter().filter(|((kind, key), _)| *kind == R::KIND && keys.contain(key)).collect();
        // Each own write may hide one of the others.
        let wide = Keys { limit: keys.limit.saturating_add(own.len()), ..keys.clone() };
        let (began, refusals) = (self.began, self.refusals);
        let mut last_key = None;
        let mut names = Vec::new();
        let base = look::<R, _>(self.state, |state| {
            if state.refusals != refusals {
                return Err(Error::Overtaken);
            }
            let Some(kind) = state.kind(R::KIND) else { return Ok(Vec::new()) };
            if kind.deleted_since(began) {
                return Err(Error::Overtaken);
            }
            let (mut base, mut last) = (Vec::new(), None);
            for (key, value) in kind.range(&wide, View::Latest) {
                if value.version.0 > began {
                    return Err(Error::Overtaken);
                }
                base.push(value.stored::<R>()?);
                last = Some(key);
                // Counting references to ten thousand keys takes as long as all else here.
                if !own.is_empty() {
                    names.push(Arc::clone(key));
                }
            }
            last_key = last.map(Arc::clone);
            Ok(base)
        });
        let base = match base {
            Ok(base) => base,
            Err(error) => {
                self.overtaken |= matches!(error, Error::Overtaken);
                return Err(error);
            }
        };
        self.ranges.push(RangeRead::new(R::KIND, wide, last_key.as_deref(), base.len()));
        if own.is_empty() {
            return Ok(base);
        }
        let merged = merge(names.into_iter().zip(base), &own)?;
        Ok(merged.into_values().take(keys.limit).collect())
    }

    /// Makes or replaces a record, if what is there is what was expected.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::Size`], [`Error::Unwritable`], and as of [`Self::get`].
    pub fn put<R: Record>(&mut self, record: R, expect: Expect) -> Result<(), Error> {
        let key = record.key();
        check_size(R::KIND, "its key", key.len(), KEY_BYTES_MAX)?;
        self.check::<R>(&key, expect)?;
        let json = serde_json::to_string(&record).map_err(|source| Error::Unwritable {
            kind: R::KIND,
            key: key.clone(),
            source,
        })?;
        check_size(R::KIND, "the record", json.len(), RECORD_BYTES_MAX)?;
        self.writes.insert((R::KIND, key.into()), Some(Content { decoded: Arc::new(record), json }));
        Ok(())
    }

    /// Deletes a record, if what is there is what was expected. Tells whether there was one.
    ///
    /// # Errors
    /// [`Error::Conflict`], and as of [`Self::get`].
    pub fn delete<R: Record>(&mut self, key: &str, expect: Expect) -> Result<bool, Error> {
        self.check::<R>(key, expect)?;
        let there = self.get::<R>(key)?.is_some();
        if there {
            self.writes.insert((R::KIND, key.into()), None);
        }
        Ok(there)
    }

    fn check<R: Record>(&mut self, key: &str, expected: Expect) -> Result<(), Error> {
        let found = match expected {
            Expect::Any => return Ok(()),
            Expect::Absent | Expect::Version(_) => self.get::<R>(key)?.map(|found| found.version),
        };
        match (expected, found) {
            (Expect::Absent, None) => Ok(()),
            (Expect::Version(expected), Some(found)) if expected == found => Ok(()),
            _ => Err(Error::Conflict { kind: R::KIND, key: key.to_owned(), expected, found }),
        }
    }

    /// The record of that key without this transaction's writes.
    fn base<R: Record>(&mut self, key: &str) -> Result<Option<Stored<R>>, Error> {
        let (began, refusals) = (self.began, self.refusals);
        let found = look::<R, _>(self.state, |state| {
            if state.refusals != refusals {
                return Err(Error::Overtaken);
            }
            let Some(kind) = state.kind(R::KIND) else { return Ok(None) };
            match kind.get(key, View::Latest) {
                Some(value) if value.version.0 > began => Err(Error::Overtaken),
                Some(value) => value.stored().map(Some),
                None if kind.deleted_since(began) => Err(Error::Overtaken),
                None => Ok(None),
            }
        });
        found.map_err(|error| self.noted(error))
    }

    /// The closure may wrap the error: what it was is remembered here.
    fn noted(&mut self, error: Error) -> Error {
        self.overtaken |= matches!(error, Error::Overtaken);
        error
    }

    pub(crate) fn is_overtaken(&self) -> bool {
        self.overtaken
    }

    /// The last transaction that this one may have seen something of.
    pub(crate) fn began(&self) -> u64 {
        self.began
    }

    /// How often the disk had refused by then.
    pub(crate) fn refusals(&self) -> u64 {
        self.refusals
    }

    pub(crate) fn has_writes(&self) -> bool {
        !self.writes.is_empty()
    }

    /// Whether all that was read is still so.
    pub(crate) fn still_true(&self, state: &State) -> bool {
        if self.overtaken || state.refusals != self.refusals {
            return false;
        }
        if state.head == self.began {
            return true;
        }
        let keys = self.read.iter().all(|((kind, key), version)| {
            let kind = state.kind(kind);
            let now = kind.and_then(|kind| kind.get(key, View::Latest)).map(|value| value.version);
            now == *version
        });
        keys && self.ranges.iter().all(|range| range.still_true(state, self.began))
    }

    pub(crate) fn into_writes(self) -> Vec<Write> {
        let writes = self.writes.into_iter();
        writes.map(|((kind, key), content)| Write { kind, key, content }).collect()
    }
}

impl RangeRead {
    fn new(kind: &'static str, mut keys: Keys, last: Option<&str>, found: usize) -> Self {
        // Nothing behind the last one was looked at.
        if found == keys.limit
            && let Some(last) = last
        {
            keys.end = Bound::Included(last.to_owned());
        }
        keys.limit = usize::MAX;
        Self { kind, keys, found }
    }

    fn still_true(&self, state: &State, began: u64) -> bool {
        let Some(kind) = state.kind(self.kind) else { return self.found == 0 };
        if !kind.changed_since(began) {
            return true;
        }
        let mut found = 0;
        for (_, value) in kind.range(&self.keys, View::Latest) {
            if value.version.0 > began {
                return false;
            }
            found += 1;
        }
        found == self.found
    }
}

/// Others' records, and a transaction's own writes over them.
fn merge<R: Record>(
    base: impl Iterator<Item = (Arc<str>, Stored<R>)>,
    own: &[(&Name, &Option<Content>)],
) -> Result<BTreeMap<Arc<str>, Stored<R>>, Error> {
    let mut merged: BTreeMap<_, _> = base.collect();
    for ((_, key), content) in own {
        match content {
            Some(content) => {
                merged.insert(Arc::clone(key), stored(&content.decoded, Version::UNCOMMITTED)?);
            }
            None => {
                merged.remove(key);
            }
        }
    }
    Ok(merged)
}

fn check_size(kind: &'static str, what: &'static str, bytes: usize, limit_bytes: usize) -> Result<(), Error> {
    match (1..=limit_bytes).contains(&bytes) {
        true => Ok(()),
        false => Err(Error::Size { kind, what, bytes, limit_bytes }),
    }
}
