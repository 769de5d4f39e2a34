//! Backups: a copy of the whole store as it is at one moment, while it is in use.
//!
//! Invariant: under the name that was asked for there is a complete and checked copy, or nothing. What
//! was there already stays.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, mpsc},
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{self, StepResult},
};
use rustix::fs::FlockOperation;
use tempfile::NamedTempFile;

use crate::{Store, store::lock};

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is something already.
    #[error("{} exists", path.display())]
    Exists {
        /// Where the backup should be.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("cannot write {}", path.display())]
    Io {
        /// Where the backup should be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite cannot read the store or write the copy.
    #[error("cannot copy the database to {}", path.display())]
    Sqlite {
        /// Where the backup should be.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The copy is not whole.
    #[error("the copy is damaged: {what}")]
    Damaged {
        /// What is wrong with it.
        what: String,
    },
    /// The store was closed.
    #[error("the store was closed")]
    Closed,
}

impl BackupError {
    /// What people can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Exists { .. } => Some("a backup never replaces a file: name another"),
            Self::Damaged { .. } => Some("look for disk errors in the kernel's log"),
            Self::Io { .. } | Self::Sqlite { .. } | Self::Closed => None,
        }
    }
}

impl Store {
    /// Copies the store to a new file, which is a database by itself. Transactions go on meanwhile; those
    /// that end before the copy does are in it.
    ///
    /// # Errors
    /// [`BackupError`]. There is then no file of that name but what was there before.
    pub fn backup(&self, path: &Path) -> Result<(), BackupError> {
        make(path, |copy| self.copy_to(copy))
    }

    /// Has the thread that has the file do it. None where there is no such thread any more.
    fn copy_to(&self, mut copy: Connection) -> Option<rusqlite::Result<Connection>> {
        let (sender, answer) = mpsc::sync_channel(1);
        self.queue().push_job(Box::new(move |writer| {
            // SQLite brings what is committed between the steps to the copy too.
            let source = writer.database().connection();
            let done = step_by_step(source, &mut copy, || writer.commit_waiting());
            // Fails where the waiting thread is gone.
            let _ = sender.send(done.map(|()| copy));
        }));
        answer.recv().ok()
    }
}

/// Copies a file that nobody else has yet, such as before its schema is changed.
pub(crate) fn copy(source: &Connection, path: &Path) -> Result<(), BackupError> {
    make(path, |mut copy| Some(step_by_step(source, &mut copy, || ()).map(|()| copy)))
}

fn make(
    path: &Path,
    copy_to: impl FnOnce(Connection) -> Option<rusqlite::Result<Connection>>,
) -> Result<(), BackupError> {
    let failed = |source| BackupError::Io { path: path.to_owned(), source };
    let sqlite = |source| BackupError::Sqlite { path: path.to_owned(), source };
    if path.symlink_metadata().is_ok() {
        return Err(BackupError::Exists { path: path.to_owned() });
    }
    let folder = folder_of(path);
    if let Err(error) = sweep(folder) {
        tracing::warn!(error = &error as &dyn std::error::Error, "unfinished backups were not swept");
    }
    let file = unfinished_in(folder).map_err(failed)?;
    let copy = copy_to(open_copy(file.path()).map_err(sqlite)?).ok_or(BackupError::Closed)?;
    finish_copy(&copy.map_err(sqlite)?, path)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(path).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists { path: path.to_owned() },
        _ => failed(error.error),
    })?;
    sync_folder(folder).map_err(failed)
}

/// A file of a name that nobody looks for: readable by its owner only, gone where it is dropped, and locked
/// so that [`sweep`] knows that somebody is at it.
fn unfinished_in(folder: &Path) -> io::Result<NamedTempFile> {
    // Nobody sweeps between making and locking.
    let _alone = lock(&SWEEPING);
    let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
    rustix::fs::flock(file.as_file(), FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Removes what backups have left that were killed.
pub(crate) fn sweep(folder: &Path) -> io::Result<()> {
    let _alone = lock(&SWEEPING);
    for entry in folder.read_dir()? {
        let entry = entry?;
        let unfinished = entry.file_name().to_str().is_some_and(|name| name.starts_with(UNFINISHED));
        if unfinished && entry.file_type()?.is_file() {
            let file = File::open(entry.path())?;
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

fn step_by_step(source: &Connection, copy: &mut Connection, between: impl Fn()) -> rusqlite::Result<()> {
    let backup = backup::Backup::new(source, copy)?;
    loop {
        match backup.step(STEP_PAGES)? {
            StepResult::Done => return Ok(()),
            StepResult::More => between(),
            // Nobody else has either file.
            _ => return Err(busy()),
        }
    }
}

fn open_copy(path: &Path) -> rusqlite::Result<Connection> {
    let copy = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    // Nobody sees the file before it is complete, and it is flushed then.
    copy.pragma_update(None, "synchronous", "OFF")?;
    copy.pragma_update(None, "journal_mode", "MEMORY")?;
    Ok(copy)
}

/// Makes the copy one file without a log beside it, and looks at it.
fn finish_copy(copy: &Connection, path: &Path) -> Result<(), BackupError> {
    let sqlite = |source| BackupError::Sqlite { path: path.to_owned(), source };
    copy.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(sqlite)?;
    copy.pragma_update(None, "journal_mode", "DELETE").map_err(sqlite)?;
    let what: String = copy.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
    match what.as_str() {
        "ok" => Ok(()),
        _ => Err(BackupError::Damaged { what }),
    }
}

fn busy() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None)
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// How the names of copies begin that are not complete.
const UNFINISHED: &str = ".ec2vmm-backup-";

/// Held while a copy is begun or swept.
static SWEEPING: Mutex<()> = Mutex::new(());

/// How many pages are copied before transactions have their turn: 1 MiB.
const STEP_PAGES: i32 = 256;
