//! Watches: who wants to know hears of each change once it is on the disk, in order.
//!
//! Invariant: a receiver that does not listen costs at most [`CHANGES_MAX`] changes of memory; beyond that
//! it is told that it has missed some, and looks for itself.

use std::sync::Arc;

use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use crate::Version;

/// A record that was changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The transaction; all changes of one have the same, and come together.
    pub version: Version,
    /// The record's kind.
    pub kind: &'static str,
    /// The record's key.
    pub key: Arc<str>,
    /// What became of it.
    pub what: What,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    /// It was made or replaced.
    Put,
    /// It is gone.
    Deleted,
}

/// Changes from the moment of [`crate::Store::watch`] on.
#[derive(Debug)]
pub struct Watch(pub(crate) broadcast::Receiver<Change>);

/// Why there is no change to tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WatchError {
    /// The receiver fell behind. The next one is the oldest that is still known.
    #[error("{missed} changes were missed")]
    Lagged {
        /// How many.
        missed: u64,
    },
    /// The store was closed.
    #[error("the store was closed")]
    Closed,
}

impl Watch {
    /// The next change. Nothing is lost where the future is dropped.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn next(&mut self) -> Result<Change, WatchError> {
        self.0.recv().await.map_err(|error| match error {
            RecvError::Lagged(missed) => WatchError::Lagged { missed },
            RecvError::Closed => WatchError::Closed,
        })
    }

    /// The next change, if there is one already.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn try_next(&mut self) -> Result<Option<Change>, WatchError> {
        match self.0.try_recv() {
            Ok(change) => Ok(Some(change)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Lagged(missed)) => Err(WatchError::Lagged { missed }),
            Err(TryRecvError::Closed) => Err(WatchError::Closed),
        }
    }
}

/// Changes that are kept for a receiver that does not listen.
pub const CHANGES_MAX: usize = 4096;
