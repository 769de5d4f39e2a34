//! What can go wrong, sorted by what people must do about it.

use crate::boot::BootError;
use crate::disk::DiskError;
use crate::open::OpenError;

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image's files could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The open files are not a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The disk cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
}

/// The distinctions that people and scripts see.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ErrorKind {
    /// The file is not there.
    NotFound,
    /// The file may not be read, or written.
    Permission,
    /// The file is not a disk: empty, a folder, or nothing known on it.
    NotADisk,
    /// The qcow2 file, or its chain of backing files, is truncated, cyclic or otherwise broken.
    BrokenQcow2,
    /// The partition table is broken.
    BrokenPartitionTable,
    /// A file system is broken.
    BrokenFileSystem,
    /// No boot entry, or no kernel where the entry says.
    NoKernel,
    /// The kernel is for another processor architecture, or is no kernel.
    WrongKernel,
    /// The host's system failed to read or write.
    Io,
}

impl Error {
    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open(error) => error.kind(),
            Self::Disk(error) => error.kind(),
            Self::Boot(error) => error.kind(),
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Open(error) => error.hint(),
            Self::Disk(error) => error.hint(),
            Self::Boot(error) => error.hint(),
        }
    }
}
