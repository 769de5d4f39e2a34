//! One process has the store. A file beside it is locked (`flock`) and names the holder.
//!
//! The lock goes with the process, however it ends; the file stays.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::FlockOperation;

/// The lock, while it lives.
pub(crate) struct Lock(File);

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
        if !lock_patiently(&file).map_err(failed)? {
            return Err(Refused::Held(holder(&mut file)));
        }
        // Who reads half of it, or the last holder's, is told less; the lock is what counts.
        let named = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        named.map_err(failed)?;
        Ok(Self(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that is just being started has a copy until it executes. Where
        // this fails, closing is what is left.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// For the same reason, the lock of a process that was killed may outlive it by a moment.
fn lock_patiently(file: &File) -> io::Result<bool> {
    for attempt in 1..=ATTEMPTS {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if attempt < ATTEMPTS => std::thread::sleep(PAUSE),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
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

/// How often the lock is tried.
const ATTEMPTS: u32 = 10;

/// How long between.
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::{Lock, Refused};

    #[test]
    fn it_is_given_back_although_somebody_has_a_copy() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("db");
        let lock = Lock::take(&database).ok().unwrap();
        let copy = lock.0.try_clone().unwrap();
        assert!(matches!(Lock::take(&database), Err(Refused::Held(Some(pid))) if pid == std::process::id()));
        drop(lock);
        assert!(Lock::take(&database).is_ok());
        drop(copy);
    }
}
