//! Snapshots: a machine that stands still is written into two files, and goes on from them in another
//! process, now or later, here or on a host like this one, once or many times.
//!
//! | file | holds |
//! |---|---|
//! | state ([`file`]) | a [`Document`]: registers, devices, what the machine is made of |
//! | memory ([`memory_file`]) | guest memory, page by page where it was, so that it can be mapped |
//!
//! How the files say what they are is in [`ec2vmm_snapshot`].
//!
//! A machine that goes on maps the memory file, or has a [`pager`] bring pages in when they are touched, and those
//! of a [`working_set`] ahead.
//!
//! Its files are written by a thread of their own ([`write`]), while the event loop serves.
//!
//! Disks are their owner's to keep: the document says how their files were, and a machine goes on with
//! files that have not changed since, and no others.
//!
//! Invariant: what is read from the files is believed by nobody. A file that makes no sense is a
//! [`RestoreError`]; at worst it is a guest that crashes.

pub use ec2vmm_snapshot::MemoryFileError;

mod document;
pub mod file;
mod memory_file;
mod open;
mod pager;
mod restore;
mod stamp;
mod take;
mod track;
pub mod working_set;
mod write;

pub use self::{
    document::{DiskShape, Document, LayerStamp, NetShape, Shape},
    open::{PagerParts, RestoreError, Snapshot},
    pager::PagerError,
    take::{Files, TakeError},
    working_set::WorkingSetError,
};
pub(crate) use self::{
    pager::{Discards, Pager},
    take::Underway,
    track::Tracking,
};
