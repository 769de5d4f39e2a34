use ec2vmm_store::{CHANGES_MAX, Error, Expect, Store, WatchError, What};

use crate::things::{Thing, put, thing};

#[test]
fn changes_are_told_once_they_are_there() {
    let store = Store::in_memory().unwrap();
    put(&store, "before", 1);
    let mut watch = store.watch();
    put(&store, "a", 1);
    store
        .transact(|transaction| {
            transaction.put(thing("b", 1), Expect::Absent)?;
            transaction.delete::<Thing>("a", Expect::Any)?;
            Ok::<_, Error>(())
        })
        .unwrap();
    let told: Vec<_> = std::iter::from_fn(|| watch.try_next().unwrap()).collect();
    let what: Vec<_> = told.iter().map(|change| (&*change.key, change.what)).collect();
    assert_eq!(what, [("a", What::Put), ("a", What::Deleted), ("b", What::Put)]);
    assert_eq!(told[0].kind, "thing");
    assert!(told[0].version < told[1].version);
    assert_eq!(told[1].version, told[2].version);
    assert_eq!(store.get::<Thing>("b").unwrap().unwrap().version, told[2].version);
}

#[test]
fn who_falls_behind_is_told_so() {
    let store = Store::in_memory().unwrap();
    let mut watch = store.watch();
    for number in 0..CHANGES_MAX + 10 {
        put(&store, &number.to_string(), 0);
    }
    assert_eq!(watch.try_next(), Err(WatchError::Lagged { missed: 10 }));
    assert_eq!(&*watch.try_next().unwrap().unwrap().key, "10");
}

#[test]
fn a_watch_ends_with_the_store() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = Store::in_memory().unwrap();
    let mut watch = store.watch();
    put(&store, "a", 1);
    drop(store);
    runtime.block_on(async {
        assert_eq!(&*watch.next().await.unwrap().key, "a");
        assert_eq!(watch.next().await, Err(WatchError::Closed));
    });
}
