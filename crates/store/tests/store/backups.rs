use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ec2vmm_store::{BackupError, Error, Expect, Keys, Store};

use crate::things::{Thing, all, put, thing};

#[test]
fn a_backup_is_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let [path, copy] = ["db", "copy"].map(|name| folder.path().join(name));
    let store = Store::open(&path).unwrap();
    put(&store, "a", 1);
    store.backup(&copy).unwrap();
    put(&store, "b", 2);
    let again = store.backup(&copy).unwrap_err();
    assert!(matches!(again, BackupError::Exists { .. }));

    let copy = Store::open(&copy).unwrap();
    assert_eq!(all(&copy), "a=1");
    put(&copy, "c", 3);
    assert_eq!(all(&store), "a=1 b=2");
}

#[test]
fn what_killed_backups_have_left_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    let [left, mine] = [".ec2vmm-backup-Xx0", ".backup-of-mine"].map(|name| folder.path().join(name));
    for path in [&left, &mine] {
        std::fs::write(path, "").unwrap();
    }
    let store = Store::in_memory().unwrap();
    put(&store, "a", 1);
    store.backup(&folder.path().join("copy")).unwrap();
    assert!(!left.exists() && mine.exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_backup_that_cannot_be_written_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::in_memory().unwrap();
    let error = store.backup(&folder.path().join("none/copy")).unwrap_err();
    assert!(matches!(error, BackupError::Io { .. }), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Pairs are written all the while: each backup has whole pairs, and all that were there when it began.
#[test]
fn backups_while_threads_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("db")).unwrap();
    // Enough for several steps.
    let many = (0..3000).map(|number| format!("{number:0>900}"));
    store
        .transact(|transaction| {
            many.clone().try_for_each(|name| transaction.put(thing(&name, 0), Expect::Any))
        })
        .unwrap();
    let (promised, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for count in 1.. {
                let pair = ["left", "right"].map(|name| thing(name, count));
                let put = |transaction: &mut ec2vmm_store::Transaction<'_>| {
                    pair.clone().into_iter().try_for_each(|thing| transaction.put(thing, Expect::Any))
                };
                store.transact::<_, Error>(put).unwrap();
                promised.store(count, Ordering::SeqCst);
                if over.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        for number in 0..5 {
            let path = folder.path().join(format!("copy-{number}"));
            let before = promised.load(Ordering::SeqCst);
            store.backup(&path).unwrap();
            let copy = Store::open(&path).unwrap();
            let counts =
                ["left", "right"].map(|name| copy.get::<Thing>(name).unwrap().map_or(0, |thing| thing.count));
            assert_eq!(counts[0], counts[1]);
            assert!(counts[0] >= before);
            assert!(copy.range::<Thing>(&Keys::all()).unwrap().len() >= 3000);
        }
        over.store(true, Ordering::SeqCst);
    });
}
