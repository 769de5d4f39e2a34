//! Backups of the database, taken while the daemon works.

/// Media type of what `GET /v1/backup` answers: one SQLite file.
pub const BACKUP_MEDIA_TYPE: &str = "application/vnd.sqlite3";
