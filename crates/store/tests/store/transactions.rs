use ec2vmm_store::{Error, Expect, Keys, Store, Version};

use crate::things::{Thing, all, put, thing};

#[test]
fn what_was_put_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path).unwrap();
    for (name, count) in [("b", 2), ("a", 1), ("c", 3)] {
        put(&store, name, count);
    }
    assert!(store.delete::<Thing>("b", Expect::Any).unwrap());
    assert!(!store.delete::<Thing>("b", Expect::Any).unwrap());
    assert_eq!(all(&store), "a=1 c=3");
    let version = store.get::<Thing>("c").unwrap().unwrap().version;
    drop(store);

    let store = Store::open(&path).unwrap();
    assert_eq!(all(&store), "a=1 c=3");
    assert_eq!(store.get::<Thing>("c").unwrap().unwrap().version, version);
    put(&store, "d", 4);
    assert!(store.get::<Thing>("d").unwrap().unwrap().version > version);
}

#[test]
fn the_number_of_a_deleted_record_is_not_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path).unwrap();
    put(&store, "a", 1);
    let first = store.get::<Thing>("a").unwrap().unwrap().version;
    store.delete::<Thing>("a", Expect::Any).unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    put(&store, "a", 1);
    assert!(store.get::<Thing>("a").unwrap().unwrap().version > first);
}

#[test]
fn writes_that_were_meant_for_something_else() {
    let store = Store::in_memory().unwrap();
    put(&store, "a", 1);
    let found = store.get::<Thing>("a").unwrap().unwrap().version;
    let stale = Version::from_u64(found.as_u64() + 1);
    for expected in [Expect::Absent, Expect::Version(stale)] {
        let refused = store.put(&thing("a", 2), expected).unwrap_err();
        assert!(
            matches!(refused, Error::Conflict { kind: "thing", found: Some(version), .. } if version == found)
        );
        assert!(matches!(store.delete::<Thing>("a", expected), Err(Error::Conflict { .. })));
    }
    let refused = store.put(&thing("b", 2), Expect::Version(found)).unwrap_err();
    assert_eq!(refused.to_string(), format!("thing b: expected version {found}, found nothing"));
    store.put(&thing("a", 3), Expect::Version(found)).unwrap();
    store.put(&thing("b", 4), Expect::Absent).unwrap();
    assert_eq!(all(&store), "a=3 b=4");
}

#[test]
fn an_error_leaves_no_trace() {
    let store = Store::in_memory().unwrap();
    put(&store, "a", 1);
    let refused = store.transact(|transaction| {
        transaction.put(thing("b", 2), Expect::Absent)?;
        transaction.delete::<Thing>("a", Expect::Any)?;
        transaction.put(thing("a", 2), Expect::Version(Version::from_u64(77)))
    });
    assert!(matches!(refused, Err(Error::Conflict { found: None, .. })));
    assert_eq!(all(&store), "a=1");
}

#[test]
fn a_transaction_sees_its_own_writes() {
    let store = Store::in_memory().unwrap();
    for name in ["a", "b", "c", "d"] {
        put(&store, name, 1);
    }
    let seen = store
        .transact(|transaction| {
            transaction.put(thing("bb", 9), Expect::Absent)?;
            transaction.delete::<Thing>("b", Expect::Any)?;
            transaction.put(thing("c", 2), Expect::Any)?;
            assert!(transaction.get::<Thing>("b")?.is_none());
            assert_eq!(transaction.get::<Thing>("c")?.unwrap().version, Version::UNCOMMITTED);
            transaction.range::<Thing>(&Keys::all().after("a").limit(2))
        })
        .unwrap();
    let seen: Vec<_> = seen.iter().map(|thing| (thing.name.as_str(), thing.count)).collect();
    assert_eq!(seen, [("bb", 9), ("c", 2)]);
    assert_eq!(all(&store), "a=1 bb=9 c=2 d=1");
}

#[test]
fn a_transaction_inside_a_transaction() {
    let store = Store::in_memory().unwrap();
    let inner = store.transact(|_| {
        assert!(matches!(store.put(&thing("a", 1), Expect::Any), Err(Error::Nested)));
        Ok::<_, Error>(())
    });
    inner.unwrap();
    put(&store, "a", 1);
}

#[test]
fn threads_that_count_together() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("db")).unwrap();
    // The new thing's count is how many there were: no two may have seen the same.
    let count = |number: u64, turn: u64| {
        store.transact(|transaction| {
            let sum = transaction.get::<Thing>("sum")?.unwrap();
            let made = transaction.range::<Thing>(&Keys::prefix("made-"))?;
            assert_eq!(u64::try_from(made.len()).unwrap(), sum.count);
            transaction.put(thing(&format!("made-{number}-{turn}"), sum.count), Expect::Absent)?;
            transaction.put(thing("sum", sum.count + 1), Expect::Version(sum.version))
        })
    };
    put(&store, "sum", 0);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let count = &count;
            scope.spawn(move || (0..25).for_each(|turn| count(number, turn).unwrap()));
        }
    });
    assert_eq!(store.get::<Thing>("sum").unwrap().unwrap().count, 200);
    assert_eq!(store.range::<Thing>(&Keys::prefix("made-")).unwrap().len(), 200);
}
