//! Files that are not opened: each refusal is plain, and leaves everything as it was.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::LazyLock,
};

use ec2vmm_store::{Error, Expect, Keys, OpenError, Store};
use proptest::prelude::{ProptestConfig, any, proptest};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::things::{Thing, put, thing};

/// All files in a folder but the lock's, which names who tried last, and the index of the log, which is
/// made anew whenever the log is read.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let kept = names.filter(|name| !name.ends_with(".lock") && !name.ends_with("-shm"));
    kept.map(|name| (name.clone(), fs::read(folder.join(&name)).unwrap())).collect()
}

/// Opens what may not be opened.
fn refused(path: &Path) -> OpenError {
    let before = files(path.parent().unwrap());
    let error = Store::open(path).map(|_| ()).unwrap_err();
    let after = files(path.parent().unwrap());
    assert!(after == before, "{error} left its traces: {:?}, then {:?}", sizes(&before), sizes(&after));
    error
}

fn sizes(files: &BTreeMap<String, Vec<u8>>) -> Vec<(&str, usize)> {
    files.iter().map(|(name, content)| (name.as_str(), content.len())).collect()
}

/// A database and its log, as a crash leaves them: the last transactions are in the log only.
fn crashed(path: &Path) {
    static FILES: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("db")).unwrap();
        for number in 0..100 {
            put(&store, &format!("{number:0>600}"), number);
        }
        files(folder.path())
    });
    for (name, content) in &*FILES {
        fs::write(path.with_file_name(name), content).unwrap();
    }
}

/// A database that was closed.
fn closed(path: &Path) {
    static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        crashed(&path);
        drop(Store::open(&path).unwrap());
        fs::read(path).unwrap()
    });
    fs::write(path, &*FILE).unwrap();
}

#[test]
fn somebody_else_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path).unwrap();
    put(&store, "a", 1);
    let error = Store::open(&path).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), format!("{} is in use by process {}", path.display(), std::process::id()));
    assert!(error.hint().is_some());
    let other = Connection::open(&path).unwrap();
    assert!(other.execute("DELETE FROM records", []).is_err(), "another program may write");
    drop(store);
    assert!(Store::open(&path).is_ok());
}

#[test]
fn only_its_owner_may_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path).unwrap();
    put(&store, "a", 1);
    store.backup(&folder.path().join("copy")).unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.file_name());
    }
}

#[test]
fn a_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    crashed(&path);
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = refused(&path);
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn a_newer_one_whose_version_is_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let [original, path] = ["original", "db"].map(|name| folder.path().join(name));
    drop(Store::open(&original).unwrap());
    let connection = Connection::open(&original).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    for suffix in ["", "-wal"] {
        fs::copy(format!("{}{suffix}", original.display()), format!("{}{suffix}", path.display())).unwrap();
    }
    assert!(matches!(refused(&path), OpenError::Newer { found: 99, .. }));
}

#[test]
fn one_of_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    assert!(matches!(refused(&path), OpenError::NotOurs { .. }));
}

#[test]
fn no_database_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    fs::write(&path, "something else, longer than a header of SQLite. ".repeat(100)).unwrap();
    assert!(matches!(refused(&path), OpenError::Damaged { .. }));
    assert!(matches!(Store::open(folder.path()).unwrap_err(), OpenError::Sqlite { .. }));
    assert!(matches!(Store::open(&folder.path().join("none/db")).unwrap_err(), OpenError::Io { .. }));
}

#[test]
fn a_log_whose_database_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    crashed(&path);
    fs::write(&path, "").unwrap();
    assert!(matches!(refused(&path), OpenError::Damaged { .. }));
    fs::remove_file(&path).unwrap();
    assert!(matches!(refused(&path), OpenError::Damaged { .. }));
}

#[test]
fn a_record_that_is_no_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    put(&Store::open(&path).unwrap(), "a", 1);
    Connection::open(&path).unwrap().execute("UPDATE records SET body = '{'", []).unwrap();
    let error = refused(&path);
    assert!(error.to_string().contains("thing a is no JSON"), "{error}");
}

#[test]
fn a_record_of_another_shape() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    put(&Store::open(&path).unwrap(), "a", 1);
    Connection::open(&path).unwrap().execute("UPDATE records SET body = '{}'", []).unwrap();
    let store = Store::open(&path).unwrap();
    let error = store.range::<Thing>(&Keys::all()).unwrap_err();
    assert_eq!(error.to_string(), "thing a cannot be read");
    assert!(matches!(store.get::<Thing>("a"), Err(Error::Unreadable { .. })));
}

#[test]
fn two_types_of_one_kind() {
    #[derive(Clone, Deserialize, Serialize)]
    struct Other {}
    impl ec2vmm_store::Record for Other {
        const KIND: &'static str = "thing";

        fn key(&self) -> String {
            "other".to_owned()
        }
    }
    let store = Store::in_memory().unwrap();
    put(&store, "a", 1);
    assert!(matches!(store.get::<Other>("a"), Err(Error::TwoTypes { kind: "thing" })));
}

#[test]
fn keys_and_records_that_are_too_large() {
    let store = Store::in_memory().unwrap();
    for name in [String::new(), "n".repeat(1025), "n".repeat(2 << 20)] {
        assert!(matches!(store.put(&thing(&name, 1), Expect::Any), Err(Error::Size { .. })));
    }
    put(&store, &"n".repeat(1024), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// What is found damaged is left alone; what is not found damaged can be read, or says that it cannot.
    #[test]
    fn damage_does_no_harm(seed in any::<u64>(), length in 1_usize..5000) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        closed(&path);
        let size = fs::metadata(&path).unwrap().len();
        let garbage: Vec<u8> = (0..length).map(|index| (seed >> (index % 57)).to_le_bytes()[0]).collect();
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&garbage, seed % size).unwrap();
        let before = files(folder.path());
        match Store::open(&path) {
            Ok(store) => drop(store.range::<Thing>(&Keys::all())),
            Err(error) => {
                let after = files(folder.path());
                assert!(after == before, "{error} left its traces: {:?}, then {:?}", sizes(&before), sizes(&after));
                assert!(error.hint().is_some() || matches!(error, OpenError::Sqlite { .. }), "{error}");
            }
        }
    }

    #[test]
    fn cut_short(kept in 1_u64..20_000) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        closed(&path);
        let size = fs::metadata(&path).unwrap().len();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(kept.min(size - 1)).unwrap();
        assert!(matches!(refused(&path), OpenError::Damaged { .. }));
    }
}
