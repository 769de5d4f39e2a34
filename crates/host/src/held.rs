//! A folder that one process has, such as a control group: it is locked (flock(2)). The lock goes with the
//! process, however it ends.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::FlockOperation;

/// The lock, while it lives.
#[derive(Debug)]
pub(crate) struct Held(File);

impl Held {
    /// None where another process has the folder, or has just taken it away.
    pub(crate) fn at_once(path: &Path) -> io::Result<Option<Self>> {
        let held = Self::lock(File::open(path)?)?;
        Ok(held.filter(|held| held.is_called(path)))
    }

    /// The same, after a moment: a machine process that is just being started has a copy of the lock until it
    /// executes, and so may outlive a daemon that was killed.
    pub(crate) fn patiently(path: &Path) -> io::Result<Option<Self>> {
        Self::within(path, PATIENCE)
    }

    fn within(path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let begun = Instant::now();
        loop {
            let held = Self::at_once(path)?;
            if held.is_some() || begun.elapsed() >= patience {
                return Ok(held);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn lock(folder: File) -> io::Result<Option<Self>> {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(folder))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it is the folder that has this name now: it may have been removed before it was locked, and another
    /// one made, which is somebody else's.
    fn is_called(&self, path: &Path) -> bool {
        let numbers = |folder: Metadata| (folder.dev(), folder.ino());
        std::fs::metadata(path)
            .is_ok_and(|named| self.0.metadata().is_ok_and(|ours| numbers(named) == numbers(ours)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing is not enough, for the same reason. Where this fails, closing is what is left.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// How long a lock is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::{fs::File, time::Duration};

    use super::Held;

    #[test]
    fn one_has_it_until_it_lets_go_although_somebody_has_a_copy() {
        let folder = tempfile::tempdir().unwrap();
        let held = Held::at_once(folder.path()).unwrap().unwrap();
        let copy = held.0.try_clone().unwrap();
        assert!(Held::at_once(folder.path()).unwrap().is_none());
        assert!(Held::patiently(folder.path()).unwrap().is_none());
        drop(held);
        assert!(Held::at_once(folder.path()).unwrap().is_some());
        drop(copy);
    }

    #[test]
    fn a_copy_that_goes_in_a_moment_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let held = Held::at_once(folder.path()).unwrap().unwrap();
        let (mut told, tells) = std::io::pipe().unwrap();
        let other = std::thread::spawn(move || {
            // Until the other one waits, or is about to.
            std::io::Read::read_exact(&mut told, &mut [0]).unwrap();
            drop(held);
        });
        std::io::Write::write_all(&mut &tells, b"x").unwrap();
        assert!(Held::within(folder.path(), Duration::from_secs(60)).unwrap().is_some());
        other.join().unwrap();
    }

    #[test]
    fn a_folder_that_was_made_anew_is_another() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        // It was opened, and is removed before it is locked.
        let open = File::open(&folder).unwrap();
        // Another one is made first, so that it cannot have the same number.
        std::fs::create_dir(parent.path().join("other")).unwrap();
        std::fs::remove_dir(&folder).unwrap();
        let held = Held::lock(open).unwrap().unwrap();
        assert!(!held.is_called(&folder));
        std::fs::rename(parent.path().join("other"), &folder).unwrap();
        assert!(!held.is_called(&folder));
        assert!(Held::at_once(&folder).unwrap().unwrap().is_called(&folder));
    }
}
