//! The records of these tests.

use ec2vmm_store::{Expect, Keys, Record, Store};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Thing {
    pub(crate) name: String,
    pub(crate) count: u64,
}

impl Record for Thing {
    const KIND: &'static str = "thing";

    fn key(&self) -> String {
        self.name.clone()
    }
}

pub(crate) fn thing(name: &str, count: u64) -> Thing {
    Thing { name: name.to_owned(), count }
}

pub(crate) fn put(store: &Store, name: &str, count: u64) {
    store.put(&thing(name, count), Expect::Any).unwrap();
}

/// All things: `a=1 b=2`.
pub(crate) fn all(store: &Store) -> String {
    let things = store.range::<Thing>(&Keys::all()).unwrap();
    let things: Vec<_> = things.iter().map(|thing| format!("{}={}", thing.name, thing.count)).collect();
    things.join(" ")
}
