//! One process has the store. A file beside it is locked (`flock`) and names the holder.
//!
//! The lock goes with the process, however it ends; the file stays.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;

/// The lock, while it lives.
pub(crate) struct Lock {
    _file: File,
}

/// Why there is no lock.
pub(crate) enum Refused {
    /// Somebody has it: who, where that can be told.
    Held(Option<u32>),
    /// The lock's file cannot be opened.
    Io {
        /// That file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Lock {
    pub(crate) fn take(database: &Path) -> Result<Self, Refused> {
        let path = beside(database, ".lock");
        let failed = |source| Refused::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Refused::Held(holder(&mut file))),
            Err(error) => return Err(failed(error.into())),
        }
        // Who reads half of it, or the last holder's, is told less; the lock is what counts.
        let named = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        named.map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// The name of a file that belongs to the database.
pub(crate) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(database);
    path.push(suffix);
    path.into()
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
