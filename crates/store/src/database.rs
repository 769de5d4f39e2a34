//! The file: opened, checked, loaded and written to by SQLite.
//!
//! Invariant: a file that is not ours, is damaged or newer is left byte for byte as it was.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, config::DbConfig, params};

use crate::{
    BackupError,
    backup::{self, folder_of, sync_folder},
    lock::{Lock, Refused, beside},
    schema::{self, APPLICATION_ID, STEPS},
    state::State,
    writer::Accepted,
};

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{} is in use by {}", path.display(), holder.map_or("another process".to_owned(), |pid| format!("process {pid}")))]
    InUse {
        /// The database.
        path: PathBuf,
        /// The process, where that can be told.
        holder: Option<u32>,
    },
    /// It was written by a newer version.
    #[error("{} has schema version {found}, this program knows versions up to {known}", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest that is known here.
        known: i64,
    },
    /// It is a database of something else.
    #[error("{} is not a database of ec2vmm", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// It is damaged.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It, or a file beside it, cannot be opened or made.
    #[error("cannot open {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite cannot read or write it.
    #[error("cannot open {}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// It is of an older version, and cannot be copied before it is brought up to date.
    #[error("cannot keep a copy of {} before its schema is changed", path.display())]
    NotKept {
        /// The database.
        path: PathBuf,
        /// Why.
        source: BackupError,
    },
    /// There is no thread to write with.
    #[error("cannot start the store's thread")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    /// What people can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::InUse { .. } => {
                Some("one daemon has a database; stop that one, or use another --state-dir")
            }
            Self::Newer { .. } => Some("use the newer program, or put back a backup that was made before it"),
            Self::NotOurs { .. } => Some("use another --state-dir"),
            Self::Damaged { .. } => Some(
                "move the file away, together with those beside it that end in -wal and -shm, \
                 and put what `ec2vmm backup` has written in its place",
            ),
            Self::NotKept { .. } => Some("make room beside the database"),
            Self::Io { .. } | Self::Sqlite { .. } | Self::Thread { .. } => None,
        }
    }
}

/// The open file. Fields are dropped in this order: the lock goes last.
pub(crate) struct Database {
    connection: Connection,
    _lock: Option<Lock>,
}

impl Database {
    pub(crate) fn open(path: &Path) -> Result<(Self, State), OpenError> {
        Self::open_with(path, STEPS)
    }

    pub(crate) fn open_with(path: &Path, steps: &[&str]) -> Result<(Self, State), OpenError> {
        let lock = Lock::take(path).map_err(|refused| match refused {
            Refused::Held(holder) => OpenError::InUse { path: path.to_owned(), holder },
            Refused::Io { path, source } => OpenError::Io { path, source },
        })?;
        ensure_file(path)?;
        if let Err(error) = backup::sweep(folder_of(path)) {
            tracing::warn!(error = &error as &dyn std::error::Error, "unfinished backups were not swept");
        }
        let log = beside(path, "-wal");
        let had_log = log.exists();
        let opened = open_file(path, steps);
        if opened.is_err() && !had_log && log.metadata().is_ok_and(|log| log.len() == 0) {
            // Only reading makes one already.
            let _ = fs::remove_file(log);
        }
        let (connection, state) = opened?;
        Ok((Self { connection, _lock: Some(lock) }, state))
    }

    pub(crate) fn in_memory() -> Result<(Self, State), OpenError> {
        let path = PathBuf::from(":memory:");
        let connection = Connection::open_in_memory()
            .and_then(|connection| schema::migrate(&connection, 0, STEPS).map(|()| connection))
            .map_err(|source| OpenError::from_sqlite(&path, source))?;
        Ok((Self { connection, _lock: None }, State::default()))
    }

    /// Writes transactions, all or none. They are on the disk when this returns.
    pub(crate) fn write(&self, batch: &[Accepted]) -> rusqlite::Result<()> {
        let Some(last) = batch.iter().rfind(|accepted| !accepted.writes.is_empty()) else { return Ok(()) };
        // Rolls back where it is dropped.
        let transaction = self.connection.unchecked_transaction()?;
        {
            let mut put =
                transaction.prepare_cached("INSERT OR REPLACE INTO records VALUES (?1, ?2, ?3, ?4)")?;
            let mut delete =
                transaction.prepare_cached("DELETE FROM records WHERE kind = ?1 AND key = ?2")?;
            for accepted in batch {
                for write in &accepted.writes {
                    match &write.content {
                        Some(content) => {
                            put.execute(params![write.kind, &*write.key, accepted.version, content.json])?
                        }
                        None => delete.execute(params![write.kind, &*write.key])?,
                    };
                }
            }
            transaction.prepare_cached("UPDATE sequence SET last = ?1")?.execute([last.version])?;
        }
        transaction.commit()
    }

    /// After a failed write: what it may have left in the log is overwritten, so that it cannot come back
    /// when the log is read after a crash.
    pub(crate) fn write_over(&self) -> rusqlite::Result<()> {
        self.connection.execute("UPDATE sequence SET last = last", []).map(|_| ())
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl OpenError {
    fn from_sqlite(path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::InUse { path, holder: None },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { path, what: source.to_string() }
            }
            Some(_) => Self::Sqlite { path, source },
            // A row that is not there, a value that is of another type or no UTF-8.
            None => Self::Damaged { path, what: source.to_string() },
        }
    }
}

/// All that the file holds.
fn load(connection: &Connection, path: &Path) -> Result<State, OpenError> {
    let sqlite = |source| OpenError::from_sqlite(path, source);
    let mut state = State::default();
    let mut statement = connection.prepare("SELECT kind, key, version, body FROM records").map_err(sqlite)?;
    let mut rows = statement.query([]).map_err(sqlite)?;
    while let Some(row) = rows.next().map_err(sqlite)? {
        let (kind, key, version, body): (String, String, u64, String) = row.try_into().map_err(sqlite)?;
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&body) {
            let what = format!("{kind} {key} is no JSON: {error}");
            return Err(OpenError::Damaged { path: path.to_owned(), what });
        }
        state.load(&kind, &key, version, body);
    }
    let last = connection.query_row("SELECT last FROM sequence", [], |row| row.get(0));
    state.head = last.map_err(sqlite)?;
    state.settled = state.head;
    Ok(state)
}

/// Keeps a copy of a file whose schema is about to be changed, as `ec2vmm.db.schema-1`.
fn keep_old(connection: &Connection, path: &Path, version: i64) -> Result<(), OpenError> {
    let first = beside(path, &format!(".schema-{version}"));
    let more = (2..=COPIES_MAX).map(|number| beside(path, &format!(".schema-{version}.{number}")));
    let name = std::iter::once(first).chain(more).find(|name| name.symlink_metadata().is_err());
    // Where all are taken, there is no lack of copies.
    let Some(name) = name else { return Ok(()) };
    tracing::info!(version, copy = %name.display(), "the database is brought up to date, a copy is kept");
    backup::copy(connection, &name).map_err(|source| OpenError::NotKept { path: path.to_owned(), source })
}

/// Opens a file that is there, and brings it up to date.
fn open_file(path: &Path, steps: &[&str]) -> Result<(Connection, State), OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let sqlite = |source| OpenError::from_sqlite(path, source);
    let connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    // Until the file is known to be ours and whole, closing it must not write the log back to it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(sqlite)?;
    prepare(&connection).map_err(sqlite)?;
    let version = examine(&connection, path, steps)?;
    make_durable(&connection).map_err(sqlite)?;
    if (1..schema::newest(steps)).contains(&version) {
        keep_old(&connection, path, version)?;
    }
    schema::migrate(&connection, version, steps).map_err(sqlite)?;
    let state = load(&connection, path)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(sqlite)?;
    Ok((connection, state))
}

/// Makes the file where there is none: readable by its owner only, for records hold people's secrets.
fn ensure_file(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Io { path: path.to_owned(), source };
    // SQLite would delete the log, and with it what may be the only copy of the last transactions.
    let size = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    if size(path) == 0 && size(&beside(path, "-wal")) > 0 {
        let what = "there is a log beside it, but it is empty or missing itself".to_owned();
        return Err(OpenError::Damaged { path: path.to_owned(), what });
    }
    match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => sync_folder(folder_of(path)).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Settings that change nothing in the file.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    // Nobody else may write: what is in memory would not be true any more.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

/// Looks whether the file is ours, whole and not too new. Gives its version; 0 where it is empty.
fn examine(connection: &Connection, path: &Path, steps: &[&str]) -> Result<i64, OpenError> {
    let sqlite = |source| OpenError::from_sqlite(path, source);
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(sqlite)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sqlite)?;
    let found = schema::version(connection).map_err(sqlite)?;
    if id == 0 && tables == 0 && found == 0 {
        return Ok(0);
    }
    if id != APPLICATION_ID || found < 1 {
        return Err(OpenError::NotOurs { path: path.to_owned() });
    }
    let known = schema::newest(steps);
    if found > known {
        return Err(OpenError::Newer { path: path.to_owned(), found, known });
    }
    let what: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
    match what.as_str() {
        "ok" => Ok(found),
        _ => Err(OpenError::Damaged { path: path.to_owned(), what }),
    }
}

/// Settings of the file that we write to.
fn make_durable(connection: &Connection) -> rusqlite::Result<()> {
    let _: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The log is written back at a thousand pages; a larger one, of a large transaction, is cut after.
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)
}

/// How large the log's file may stay, bytes.
const LOG_BYTES_KEPT: i64 = 16 << 20;

/// How many copies of one schema version are kept.
const COPIES_MAX: u32 = 9;

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::{Database, OpenError};
    use crate::{lock::beside, schema::STEPS};

    /// As version 1 left it: without the table that remembers the last transaction.
    fn version_1(path: &std::path::Path) {
        let connection = Connection::open(path).unwrap();
        let statements = "PRAGMA journal_mode = WAL; BEGIN;
             CREATE TABLE records (kind TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,
                 body TEXT NOT NULL, PRIMARY KEY (kind, key)) STRICT, WITHOUT ROWID;
             INSERT INTO records VALUES ('thing', 'a', 7, '{}'), ('thing', 'b', 5, '[]');
             PRAGMA application_id = 1700999798; PRAGMA user_version = 1; COMMIT;";
        connection.execute_batch(statements).unwrap();
    }

    #[test]
    fn an_older_one_is_brought_up_to_date_and_a_copy_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        version_1(&path);
        for _ in 0..2 {
            let (_, state) = Database::open(&path).unwrap();
            assert_eq!((state.head, state.settled), (7, 7));
            assert!(state.is_raw("thing"));
        }
        let copy = Connection::open(beside(&path, ".schema-1")).unwrap();
        let version: i64 = copy.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        let records: i64 = copy.query_row("SELECT count(*) FROM records", [], |row| row.get(0)).unwrap();
        assert_eq!((version, records), (1, 2));
        assert!(!beside(&path, ".schema-1.2").exists(), "only a change of the schema is worth a copy");
    }

    #[test]
    fn a_step_that_fails_leaves_the_version_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        version_1(&path);
        let steps = [STEPS[0], "CREATE TABLE half (x); DELETE FROM records", "INSERT INTO none VALUES (1)"];
        for copies in 1..=2 {
            let refused = Database::open_with(&path, &steps).map(|_| ()).unwrap_err();
            assert!(matches!(refused, OpenError::Sqlite { .. }), "{refused}");
            assert_eq!(beside(&path, ".schema-1.2").exists(), copies == 2);
        }
        assert_eq!(Database::open(&path).unwrap().1.head, 7);
    }

    #[test]
    fn settings_are_what_durability_needs() {
        let folder = tempfile::tempdir().unwrap();
        let (database, _) = Database::open(&folder.path().join("db")).unwrap();
        let text = |name| {
            database
                .connection
                .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
                .unwrap()
        };
        assert_eq!(text("journal_mode"), "wal".to_owned().into());
        assert_eq!(text("synchronous"), 2.into());
        assert_eq!(text("locking_mode"), "exclusive".to_owned().into());
    }
}
