//! The file: opened, checked, loaded and written to by SQLite.
//!
//! Invariant: a file that is not ours, is damaged or newer is left byte for byte as it was.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, config::DbConfig, params};

use crate::{
    backup::{folder_of, sync_folder},
    lock::{Lock, Refused},
    schema::{self, APPLICATION_ID, STEPS, Step},
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
            Self::Io { .. } | Self::Sqlite { .. } | Self::Thread { .. } => None,
        }
    }
}

/// The open file. Fields are dropped in this order: the lock goes last.
pub(crate) struct Database {
    connection: Connection,
    path: PathBuf,
    _lock: Option<Lock>,
}

impl Database {
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, STEPS)
    }

    pub(crate) fn open_with(path: &Path, steps: &[Step]) -> Result<Self, OpenError> {
        let lock = Lock::take(path).map_err(|refused| match refused {
            Refused::Held(holder) => OpenError::InUse { path: path.to_owned(), holder },
            Refused::Io(source) => OpenError::Io { path: path.to_owned(), source },
        })?;
        ensure_file(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let sqlite = |source| OpenError::from_sqlite(path, source);
        let connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
        // Until the file is known to be ours and whole, closing it must not write the log back to it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(sqlite)?;
        prepare(&connection).map_err(sqlite)?;
        let version = examine(&connection, path, steps)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(sqlite)?;
        make_durable(&connection).map_err(sqlite)?;
        schema::migrate(&connection, version, steps).map_err(sqlite)?;
        Ok(Self { connection, path: path.to_owned(), _lock: Some(lock) })
    }

    pub(crate) fn in_memory() -> Result<Self, OpenError> {
        let path = PathBuf::from(":memory:");
        let connection = Connection::open_in_memory()
            .and_then(|connection| schema::migrate(&connection, 0, STEPS).map(|()| connection))
            .map_err(|source| OpenError::from_sqlite(&path, source))?;
        Ok(Self { connection, path, _lock: None })
    }

    /// All that the file holds.
    pub(crate) fn load(&self) -> Result<State, OpenError> {
        self.read_all().map_err(|source| OpenError::from_sqlite(&self.path, source))
    }

    fn read_all(&self) -> rusqlite::Result<State> {
        let mut state = State::default();
        let mut statement = self.connection.prepare("SELECT kind, key, version, body FROM records")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (kind, key) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
            state.load(kind, key, row.get(2)?, row.get(3)?);
        }
        state.head = self.connection.query_row("SELECT last FROM sequence", [], |row| row.get(0))?;
        state.settled = state.head;
        Ok(state)
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
            _ => Self::Sqlite { path, source },
        }
    }
}

/// Makes the file where there is none: readable by its owner only, for records hold people's secrets.
fn ensure_file(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Io { path: path.to_owned(), source };
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
fn examine(connection: &Connection, path: &Path, steps: &[Step]) -> Result<i64, OpenError> {
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
