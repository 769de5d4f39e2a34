//! Measures durable commits, reads of a large range and opening, on the disk that a folder is on:
//! `cargo run --release -p ec2vmm-store --example commits -- FOLDER`.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement prints, or ends")]

use std::{path::PathBuf, time::Instant};

use ec2vmm_store::{Error, Expect, Keys, Record, Store};
use serde::{Deserialize, Serialize};

/// As large as an instance's record.
#[derive(Clone, Deserialize, Serialize)]
struct Thing {
    name: String,
    count: u64,
    more: String,
}

impl Record for Thing {
    const KIND: &'static str = "thing";

    fn key(&self) -> String {
        self.name.clone()
    }
}

fn main() {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder).unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path).unwrap();
    for threads in [1, 2, 8, 32] {
        println!("{threads:>2} threads: {:>8.0} commits/s", commits_per_second(&store, threads));
    }
    for number in 0..10 {
        let names = (0..1000).map(|index| format!("i-{number}{index:0>16}"));
        store.transact(|transaction| names.clone().try_for_each(|name| put(transaction, name, 0))).unwrap();
    }
    let begun = Instant::now();
    let page = store.range::<Thing>(&Keys::prefix("i-").limit(1000)).unwrap();
    println!("a page of {} of 10000: {:?}", page.len(), begun.elapsed());
    for threads in [1, 32] {
        println!(
            "{threads:>2} threads that look at all first: {:.0} commits/s",
            launches_per_second(&store, threads)
        );
    }
    drop(store);
    let begun = Instant::now();
    let store = Store::open(&path).unwrap();
    println!("opening at 10000 records: {:?}", begun.elapsed());
    let begun = Instant::now();
    let all = store.range::<Thing>(&Keys::all()).unwrap();
    println!("decoding {}: {:?}", all.len(), begun.elapsed());
    let begun = Instant::now();
    store.backup(&folder.path().join("backup")).unwrap();
    println!("backup: {:?}", begun.elapsed());
}

fn commits_per_second(store: &Store, threads: u32) -> f64 {
    let begun = Instant::now();
    let each = COMMITS / threads;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for count in 0..each {
                    let name = format!("thread-{thread}-{}", count % 10);
                    store.transact(|transaction| put(transaction, name.clone(), count)).unwrap();
                }
            });
        }
    });
    f64::from(each * threads) / begun.elapsed().as_secs_f64()
}

/// As a launch does that counts what is there before it adds one.
fn launches_per_second(store: &Store, threads: u32) -> f64 {
    let begun = Instant::now();
    let each = LAUNCHES / threads;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for count in 0..each {
                    let name = format!("i-{thread}-of-{threads}-{count}");
                    let launched = store.transact(|transaction| {
                        let there = transaction.range::<Thing>(&Keys::all())?.len();
                        put(transaction, name.clone(), u32::try_from(there).unwrap())
                    });
                    launched.unwrap();
                }
            });
        }
    });
    f64::from(each * threads) / begun.elapsed().as_secs_f64()
}

fn put(transaction: &mut ec2vmm_store::Transaction<'_>, name: String, count: u32) -> Result<(), Error> {
    transaction.put(Thing { name, count: u64::from(count), more: "x".repeat(1200) }, Expect::Any)
}

const COMMITS: u32 = 3200;

const LAUNCHES: u32 = 640;
