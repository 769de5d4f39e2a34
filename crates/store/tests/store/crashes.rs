//! Ends that nobody announces: kill -9, a log that was written in part, a limit that writing runs into.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ec2vmm_store::{DiskError, Error, Expect, Keys, Store};
use proptest::{
    collection::vec,
    prelude::{ProptestConfig, any, proptest},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::things::{Thing, all, put, thing};

const THREADS: u64 = 4;

/// Writes two things of each thread's number, always together.
fn put_pair(store: &Store, thread: u64, count: u64) -> Result<(), Error> {
    store.transact(|transaction| {
        transaction.put(thing(&format!("left-{thread}"), count), Expect::Any)?;
        transaction.put(thing(&format!("right-{thread}"), count), Expect::Any)
    })
}

/// The count of each thread's pair, both of which must be the same.
fn pairs(store: &Store) -> BTreeMap<u64, u64> {
    let count = |side: &str, thread: u64| {
        store.get::<Thing>(&format!("{side}-{thread}")).unwrap().map_or(0, |thing| thing.count)
    };
    let counts = (0..THREADS).map(|thread| {
        assert_eq!(count("left", thread), count("right", thread), "half a transaction");
        (thread, count("left", thread))
    });
    counts.collect()
}

fn start(test: &str, folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

const FOLDER: &str = "STORE_TEST_FOLDER";

#[test]
#[ignore = "started by other tests, in a process of its own"]
fn writes_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    std::io::stdout().write_all(b"opens\n").unwrap();
    let store = Store::open(&Path::new(&folder).join("db")).unwrap();
    let begun = pairs(&store);
    std::thread::scope(|scope| {
        for (thread, begun) in begun {
            let store = &store;
            scope.spawn(move || {
                for count in begun + 1.. {
                    put_pair(store, thread, count).unwrap();
                    // In one write: a line is whole or not there.
                    std::io::stdout().write_all(format!("promised {thread} {count}\n").as_bytes()).unwrap();
                }
            });
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 0, ..ProptestConfig::default() })]
    #[test]
    fn what_was_promised_is_there_after_a_kill(kills in vec((0_usize..60, 0_u32..300_000), 1..8)) {
        let folder = tempfile::tempdir().unwrap();
        let mut promised = BTreeMap::new();
        for (lines, delay) in kills {
            let mut child = start("crashes::writes_until_killed", folder.path());
            let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            let mut told: Vec<_> = output.by_ref().skip_while(|line| !line.ends_with("opens")).take(lines + 1).collect();
            (0..delay).for_each(|_| std::hint::spin_loop());
            child.kill().unwrap();
            child.wait().unwrap();
            told.extend(output);
            for line in told {
                let [_, thread, count] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
                promised.insert(thread.parse().unwrap(), count.parse().unwrap());
            }
            let store = Store::open(&folder.path().join("db")).unwrap();
            for (thread, found) in pairs(&store) {
                let last: u64 = promised.insert(thread, found).unwrap_or(0);
                // One more may have been on its way.
                assert!((last..=last + 1).contains(&found), "{thread}: {last} promised, {found} found");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// A power failure: of the log's last pages some are there, some are not, some are garbage. What is
    /// found is what was there after some transaction, and the ones that the cut has not reached are in it.
    #[test]
    fn a_log_that_was_written_in_part(transactions in 1_u64..60, cut in any::<u64>(), garbage in vec(any::<u8>(), 0..6000)) {
        let folder = tempfile::tempdir().unwrap();
        let [original, path] = ["original", "db"].map(|name| folder.path().join(name));
        let store = Store::open(&original).unwrap();
        let mut sizes = vec![size(&log_of(&original))];
        for count in 1..=transactions {
            put_pair(&store, 0, count).unwrap();
            sizes.push(size(&log_of(&original)));
        }
        fs::copy(&original, &path).unwrap();
        let mut bytes = fs::read(log_of(&original)).unwrap();
        let first = sizes[0];
        let kept = first + cut % (u64::try_from(bytes.len()).unwrap() - first + 1);
        bytes.truncate(usize::try_from(kept).unwrap());
        bytes.extend(&garbage);
        fs::write(log_of(&path), bytes).unwrap();

        let store = Store::open(&path).unwrap();
        let found = pairs(&store)[&0];
        let whole = sizes.iter().rposition(|size| *size <= kept).unwrap();
        assert_eq!(found, u64::try_from(whole).unwrap());
        assert_eq!(store.range::<Thing>(&Keys::all()).unwrap().len(), if found == 0 { 0 } else { 2 });
        put_pair(&store, 0, 1000).unwrap();
        assert_eq!(pairs(&store)[&0], 1000);
    }
}

fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn the_log_does_not_grow_without_bound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path).unwrap();
    for count in 0..3000 {
        put_pair(&store, count % 7, count).unwrap();
    }
    // A thousand pages of 4 KiB and their headers, and what one more transaction needs.
    assert!(size(&log_of(&path)) < 5 << 20, "{}", size(&log_of(&path)));
    // One that is larger than that by itself.
    let many = |transaction: &mut ec2vmm_store::Transaction<'_>| {
        (0..40).try_for_each(|number| transaction.put(thing(&format!("{number:0>1000}"), 1), Expect::Any))
    };
    store.transact(many).unwrap();
    drop(store);
    assert!(!log_of(&path).exists(), "closing writes the log back");
}

#[test]
fn writing_that_runs_into_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let child = start("crashes::writes_into_a_limit", folder.path());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The size of files is limited while threads write: the disk says no, at different places of a write.
#[test]
#[ignore = "started by other tests, in a process of its own"]
fn writes_into_a_limit() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let path = Path::new(&folder).join("db");
    // The signal that says no would end the process.
    let hit = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::clone(&hit)).unwrap();
    let unlimited = getrlimit(Resource::Fsize);
    let mut store = Store::open(&path).unwrap();
    let mut counts = pairs(&store);
    for round in 0..40 {
        let limit = size(&log_of(&path)) + 1 + round * 517;
        setrlimit(Resource::Fsize, Rlimit { current: Some(limit), ..unlimited }).unwrap();
        std::thread::scope(|scope| {
            for (thread, count) in &mut counts {
                let store = &store;
                scope.spawn(move || {
                    let error = loop {
                        match put_pair(store, *thread, *count + 1) {
                            Ok(()) => *count += 1,
                            Err(error) => break error,
                        }
                    };
                    assert!(matches!(error, Error::Disk(DiskError::Io { .. })), "{error}");
                    assert_eq!(
                        store.get::<Thing>(&format!("left-{thread}")).unwrap().map_or(0, |thing| thing.count),
                        *count
                    );
                });
            }
        });
        assert!(hit.load(Ordering::Relaxed));
        assert_eq!(pairs(&store), counts);
        setrlimit(Resource::Fsize, unlimited).unwrap();
        if round % 2 == 0 {
            // Nothing need be restarted.
            for (thread, count) in &mut counts {
                *count += 1;
                put_pair(&store, *thread, *count).unwrap();
            }
        }
        // And nothing else is on the disk than in memory.
        let before = all(&store);
        drop(store);
        store = Store::open(&path).unwrap();
        assert_eq!(all(&store), before);
    }
    put(&store, "done", 1);
}
