//! The store against a map: whatever is done in whatever order, with openings in between.

use std::{collections::BTreeMap, path::Path};

use ec2vmm_store::{Error, Expect, Keys, Store, Version};
use proptest::{
    collection::vec,
    prelude::{Just, ProptestConfig, Strategy, prop_oneof, proptest},
};

use crate::things::{Thing, thing};

#[derive(Clone, Debug)]
enum Step {
    /// One transaction. One that is given up at its end leaves no trace.
    Transact {
        writes: Vec<Write>,
        given_up: bool,
    },
    Range {
        prefix: String,
        after: String,
        limit: usize,
    },
    OpenAgain,
}

#[derive(Clone, Debug)]
enum Write {
    Put { name: String, count: u64, expect: Guess },
    Delete { name: String, expect: Guess },
}

/// What a writer thinks is there.
#[derive(Clone, Copy, Debug)]
enum Guess {
    Any,
    Absent,
    Present,
    Stale,
}

type Model = BTreeMap<String, (u64, Version)>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn it_is_a_map(steps in vec(step(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let mut store = Store::open(&path).unwrap();
        let mut model = Model::new();
        for step in steps {
            store = take(store, &mut model, step, &path);
            let found: Vec<_> = store.range::<Thing>(&Keys::all()).unwrap();
            let expected: Vec<_> = model.iter().map(|(name, (count, version))| (name.clone(), *count, *version)).collect();
            let found: Vec<_> = found.iter().map(|found| (found.name.clone(), found.count, found.version)).collect();
            assert_eq!(found, expected);
        }
    }
}

fn take(store: Store, model: &mut Model, step: Step, path: &Path) -> Store {
    match step {
        Step::OpenAgain => {
            drop(store);
            return Store::open(path).unwrap();
        }
        Step::Range { prefix, after, limit } => {
            let keys = Keys::prefix(&prefix).after(&after).limit(limit);
            let inside = store.transact(|transaction| transaction.range::<Thing>(&keys)).unwrap();
            let outside = store.range::<Thing>(&keys).unwrap();
            let names = |found: &[ec2vmm_store::Stored<Thing>]| -> Vec<_> {
                found.iter().map(|found| found.name.clone()).collect()
            };
            assert_eq!(names(&inside), names(&outside));
            let expected = model.keys().filter(|name| name.starts_with(&prefix) && **name > after);
            assert_eq!(names(&inside), expected.take(limit).cloned().collect::<Vec<_>>());
        }
        Step::Transact { writes, given_up } => {
            let mut next = model.clone();
            let expected = writes.iter().all(|write| imagine(&mut next, write)) && !given_up;
            let done = store.transact(|transaction| {
                for write in &writes {
                    let (Write::Put { name, expect, .. } | Write::Delete { name, expect }) = write;
                    let found = transaction.get::<Thing>(name)?.map(|found| found.version);
                    let expect = expect.against(found);
                    match write {
                        Write::Put { name, count, .. } => transaction.put(thing(name, *count), expect)?,
                        Write::Delete { name, .. } => {
                            assert_eq!(transaction.delete::<Thing>(name, expect)?, found.is_some());
                        }
                    }
                }
                if given_up { Err(Refusal::GivenUp) } else { Ok(()) }
            });
            assert_eq!(done.is_ok(), expected, "{done:?}");
            if expected {
                for (name, (_, version)) in &mut next {
                    if *version == Version::UNCOMMITTED {
                        *version = store.get::<Thing>(name).unwrap().unwrap().version;
                        assert!(model.values().all(|(_, before)| before < version));
                    }
                }
                *model = next;
            }
        }
    }
    store
}

/// What a write should do; false where it should be refused.
fn imagine(model: &mut Model, write: &Write) -> bool {
    let (Write::Put { name, expect, .. } | Write::Delete { name, expect }) = write;
    let fits = match expect {
        Guess::Any => true,
        Guess::Absent => !model.contains_key(name),
        Guess::Present => model.contains_key(name),
        Guess::Stale => false,
    };
    match write {
        _ if !fits => {}
        Write::Put { name, count, .. } => {
            model.insert(name.clone(), (*count, Version::UNCOMMITTED));
        }
        Write::Delete { name, .. } => {
            model.remove(name);
        }
    }
    fits
}

impl Guess {
    fn against(self, found: Option<Version>) -> Expect {
        match self {
            Self::Any => Expect::Any,
            Self::Absent => Expect::Absent,
            Self::Present => Expect::Version(found.unwrap_or(Version::from_u64(0))),
            Self::Stale => Expect::Version(Version::from_u64(0)),
        }
    }
}

/// Why a transaction of the test ended.
#[derive(Debug)]
enum Refusal {
    Store(#[expect(dead_code, reason = "shown where the test fails")] Error),
    GivenUp,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

fn step() -> impl Strategy<Value = Step> {
    let writes = vec(write(), 1..4);
    prop_oneof![
        6 => (writes, proptest::bool::weighted(0.1)).prop_map(|(writes, given_up)| Step::Transact { writes, given_up }),
        2 => ("[ab]{0,2}", "[ab]{0,3}", 0..4_usize).prop_map(|(prefix, after, limit)| Step::Range { prefix, after, limit }),
        1 => Just(Step::OpenAgain),
    ]
}

fn write() -> impl Strategy<Value = Write> {
    let guess = prop_oneof![4 => Just(Guess::Any), 1 => Just(Guess::Absent), 2 => Just(Guess::Present), 1 => Just(Guess::Stale)];
    (name(), 0_u64..100, guess, proptest::bool::weighted(0.3)).prop_map(|(name, count, expect, delete)| {
        match delete {
            true => Write::Delete { name, expect },
            false => Write::Put { name, count, expect },
        }
    })
}

fn name() -> impl Strategy<Value = String> {
    "[ab]{1,3}"
}
