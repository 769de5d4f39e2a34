//! Records: what the store keeps, and how a kept one is named and versioned.

use std::{fmt, ops::Deref, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

/// What can be kept: JSON under a kind and a key.
pub trait Record: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The name of its kind, in the singular. Never changes: it is in people's files.
    const KIND: &'static str;

    /// Its name, unique among its kind: 1 to [`KEY_BYTES_MAX`] bytes. Ranges are in the order of keys.
    fn key(&self) -> String;
}

/// A record as it was found.
#[derive(Debug)]
pub struct Stored<R> {
    /// The record.
    pub record: Arc<R>,
    /// The transaction that wrote it.
    pub version: Version,
}

impl<R> Clone for Stored<R> {
    fn clone(&self) -> Self {
        Self { record: Arc::clone(&self.record), version: self.version }
    }
}

impl<R> Deref for Stored<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.record
    }
}

/// The number of the transaction that wrote a record last. Never used twice, so that a record which was
/// deleted and made again differs from the first one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Version(pub(crate) u64);

impl Version {
    /// Of what the running transaction itself has put.
    pub const UNCOMMITTED: Self = Self(u64::MAX);

    /// As a number, such as for an `ETag`.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// Out of the number.
    pub fn from_u64(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// What must be there for a write to go ahead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    /// Whatever is there, or nothing.
    Any,
    /// Nothing.
    Absent,
    /// This version of the record.
    Version(Version),
}

impl fmt::Display for Expect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => formatter.write_str("anything"),
            Self::Absent => formatter.write_str("nothing"),
            Self::Version(version) => write!(formatter, "version {version}"),
        }
    }
}

/// The longest key, bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// The largest record, bytes of JSON.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
