//! Durable records in transactions, on SQLite.
//!
//! It knows kinds, ids and versions of records, never what they mean.
