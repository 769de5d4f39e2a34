//! The file's schema, version by version. A file of an older version is brought up step by step, in one
//! transaction; one of a newer version is refused.
//!
//! The version is SQLite's `user_version`, which is part of every transaction. Steps are never changed
//! once released: every new file goes through all of them.

use rusqlite::Connection;

/// Marks a file as one of ours (SQLite's `application_id`): `ec2v`.
pub(crate) const APPLICATION_ID: i32 = i32::from_be_bytes(*b"ec2v");

/// What brings a file to version 1, to version 2, ...: statements, which have SQLite's functions for JSON.
pub(crate) const STEPS: &[&str] = &[
    "CREATE TABLE records (
             kind TEXT NOT NULL,
             key TEXT NOT NULL,
             version INTEGER NOT NULL,
             body TEXT NOT NULL,
             PRIMARY KEY (kind, key)
         ) STRICT, WITHOUT ROWID;",
    // Without it the number of a deleted record could be given again.
    "CREATE TABLE sequence (last INTEGER NOT NULL) STRICT;
         INSERT INTO sequence SELECT coalesce(max(version), 0) FROM records;",
];

/// The version of a file.
pub(crate) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// The version that `steps` lead to.
pub(crate) fn newest(steps: &[&str]) -> i64 {
    i64::try_from(steps.len()).unwrap_or(i64::MAX)
}

/// Brings a file up to the newest version.
pub(crate) fn migrate(connection: &Connection, from: i64, steps: &[&str]) -> rusqlite::Result<()> {
    let done = usize::try_from(from).unwrap_or(0);
    if done >= steps.len() {
        return Ok(());
    }
    let transaction = connection.unchecked_transaction()?;
    for step in steps.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", newest(steps))?;
    transaction.commit()
}
