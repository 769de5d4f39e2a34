//! Snapshots: a machine that stands still is written into two files, and goes on from them in another
//! process, now or later, here or on a host like this one, once or many times.
//!
//! | file | holds |
//! |---|---|
//! | state ([`file`]) | a [`Document`]: registers, devices, what the machine is made of |
//! | memory ([`memory_file`]) | guest memory, page by page where it was, so that it can be mapped |
//!
//! Disks are their owner's to keep: the document says how their files were, and a machine goes on with
//! files that have not changed since, and no others.
//!
//! Invariant: what is read from the files is believed by nobody. A file that makes no sense is a
//! [`RestoreError`]; at worst it is a guest that crashes.

mod document;
pub mod file;
mod memory_file;
mod open;
mod restore;
mod stamp;
mod take;
mod track;

pub(crate) use self::track::Tracking;
pub use self::{
    document::{DiskShape, Document, LayerStamp, NetShape, Shape},
    memory_file::MemoryFileError,
    open::{RestoreError, Snapshot},
    take::{Files, TakeError},
};
