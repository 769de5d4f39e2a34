//! Durable records in transactions, on SQLite.
//!
//! It knows kinds, keys and versions of records, never what they mean. A [`Store`] gives six things: get,
//! put, delete, range, commit-if-unchanged, watch; nothing in its interface says SQLite, so that it can be
//! put on etcd when one host is not enough.
//!
//! What is promised:
//! * What [`Store::transact`] has returned is on the disk, all of it; what it has refused is not there.
//! * [`Store::get`] and [`Store::range`] show only what is on the disk: nothing that a client was told
//!   can be lost.
//! * Transactions are serializable: each one sees the store as if it were alone.
//! * One process has the file. A damaged file, and one of a newer version, is refused and left as it is.

mod backup;
mod database;
mod keys;
mod kinds;
mod lock;
mod record;
mod schema;
mod state;
mod store;
mod transaction;
mod watch;
mod writer;

pub use backup::BackupError;
pub use database::OpenError;
pub use keys::Keys;
pub use record::{Expect, KEY_BYTES_MAX, RECORD_BYTES_MAX, Record, Stored, Version};
pub use state::Error;
pub use store::Store;
pub use transaction::Transaction;
pub use watch::{CHANGES_MAX, Change, Watch, WatchError, What};
pub use writer::DiskError;
