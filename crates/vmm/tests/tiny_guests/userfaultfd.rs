//! A machine goes on from a snapshot whose memory is brought in when it is touched.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    time::{Duration, Instant},
};

use ec2vmm_vmm_api::{
    Event, Exit, FailureKind, MachineConfig,
    config::MemoryBackend,
    control::{Metrics, SnapshotTaken, WorkingSet},
};

use crate::{
    get, guests,
    held::Birth,
    hostile::{
        BALLOON,
        driver::{BUFFERS, Descriptor, Driver},
        script::{Script, Width, once},
    },
    machine::{self, Machine},
    snapshot::{self, Files, config, content, print, refused_by, start, take},
};

const DEVICE: i32 = 30;
const PREFETCH: i32 = 31;
const RECORD: i32 = 32;

/// What restores by userfaultfd with.
#[derive(Clone, Copy, Default)]
struct With<'a> {
    prefetch: Option<&'a File>,
    record: Option<&'a File>,
    track: bool,
}

fn device() -> Option<File> {
    let device = File::options().read(true).write(true).open("/dev/userfaultfd");
    device.inspect_err(|error| eprintln!("SKIPPED: /dev/userfaultfd: {error}")).ok()
}

/// None where there is no userfaultfd to be had.
fn restore_chain(config: &MachineConfig, with: With<'_>, state: &File, memory: &[&File]) -> Option<Machine> {
    Some(restore_by(&device()?, config, with, state, memory))
}

fn restore_by(
    device: &File,
    config: &MachineConfig,
    with: With<'_>,
    state: &File,
    memory: &[&File],
) -> Machine {
    let With { prefetch, record, track } = with;
    let open = |file: &File| -> OwnedFd { file.try_clone().unwrap().into() };
    let given = [(Some(device), DEVICE), (prefetch, PREFETCH), (record, RECORD)];
    let files = given.into_iter().filter_map(|(file, number)| Some((open(file?), number))).collect();
    let backend = MemoryBackend::Userfaultfd {
        device: Some(DEVICE),
        prefetch: prefetch.map(|_| PREFETCH),
        record: record.map(|_| RECORD),
    };
    snapshot::restore_by(config, track, backend, files, state, memory)
}

fn restore(files: &Files, with: With<'_>) -> Option<Machine> {
    restore_chain(&config(), with, &files.state, &[&files.memory])
}

fn counter(machine: &Machine, name: &str) -> u64 {
    get::<Metrics>(machine, "/metrics").devices["pager"][name]
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never comes to be");
    }
}

/// A guest that has written to its 64 pages, and its snapshot.
fn written() -> Files {
    let mut machine = start(guests::pages());
    machine.console.write_all(b"w").unwrap();
    let mut echo = [0];
    machine.console.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"w");
    snapshot::snapshot(&machine)
}

/// The first of the guest's pages.
const FIRST: u32 = 0x40_0000 / 4096;

/// The sum of the guest's pages, the eight of this number.
fn sum(eight: u8) -> [u8; 1] {
    [eight.wrapping_mul(64).wrapping_add(36)]
}

/// The pages that are in a working set.
fn pages(working_set: &File) -> Vec<u32> {
    let content = content(working_set);
    assert_eq!(&content[..8], b"ec2vmset");
    content[56..].chunks(4).map(|page| u32::from_le_bytes(page.try_into().unwrap())).collect()
}

#[test]
fn a_guest_goes_on_and_has_the_memory_that_it_had() {
    let files = written();
    let before = content(&files.memory);
    let Some(mut machine) = restore(&files, With::default()) else { return };
    assert!(matches!(machine.event(), Some(Event::Restored { .. })));
    for eight in 0..8 {
        assert_eq!(print(&mut machine), sum(eight));
    }
    // All of the pages, and what restoring and executing took.
    assert!((64..128).contains(&counter(&machine, "faults")));
    machine.console.write_all(b"q").unwrap();
    assert_eq!(machine.end().0.code(), Some(0));
    assert!(content(&files.memory) == before, "the file is as it was");
}

#[test]
fn what_is_touched_is_recorded_and_prefetched() {
    let files = written();
    let record = tempfile::tempfile().unwrap();
    let Some(mut machine) = restore(&files, With { record: Some(&record), ..With::default() }) else {
        return;
    };
    assert_eq!((print(&mut machine), print(&mut machine)), (sum(0), sum(1)));
    machine.console.write_all(b"q").unwrap();
    let told = machine.wait_for(|event| matches!(event, Event::WorkingSetRecorded { .. }));
    let Event::WorkingSetRecorded { pages: told, .. } = told else { unreachable!() };
    assert_eq!(machine.end().0.code(), Some(0));
    let recorded = pages(&record);
    assert_eq!(recorded.len() as u64, told);
    let of_the_guest: Vec<u32> =
        recorded.iter().copied().filter(|page| (FIRST..FIRST + 64).contains(page)).collect();
    assert_eq!(of_the_guest, (FIRST..FIRST + 16).collect::<Vec<_>>());

    let mut machine = restore(&files, With { prefetch: Some(&record), ..With::default() }).unwrap();
    let came = |machine: &Machine| counter(machine, "prefetched") + counter(machine, "faults");
    wait_until(|| came(&machine) >= told);
    let before = counter(&machine, "faults");
    assert_eq!((print(&mut machine), print(&mut machine)), (sum(0), sum(1)));
    assert_eq!(counter(&machine, "faults"), before, "nobody waited for these");
    assert_eq!(print(&mut machine), sum(2));
    assert_eq!(counter(&machine, "faults"), before + 8);
}

#[test]
fn a_working_set_ends_when_it_is_said_so() {
    let files = written();
    let record = tempfile::tempfile().unwrap();
    let with = With { record: Some(&record), ..With::default() };
    let Some(mut machine) = restore(&files, with) else { return };
    assert_eq!(print(&mut machine), sum(0));
    let answer = crate::ask(&machine, "PUT", "/machine/working-set");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let told: WorkingSet = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(print(&mut machine), sum(1));
    assert!(crate::ask(&machine, "PUT", "/machine/working-set").starts_with("HTTP/1.1 409"));
    machine.console.write_all(b"q").unwrap();
    assert_eq!(machine.end().0.code(), Some(0));
    let recorded = pages(&record);
    assert_eq!(recorded.len() as u64, told.pages);
    assert!(recorded.contains(&(FIRST + 7)) && !recorded.contains(&(FIRST + 8)));
}

#[test]
fn a_working_set_that_cannot_be_written_is_told() {
    let files = written();
    let unwritable = File::open("/dev/null").unwrap();
    let with = With { record: Some(&unwritable), ..With::default() };
    let Some(mut machine) = restore(&files, with) else { return };
    machine.wait_for(|event| matches!(event, Event::Running { .. }));
    assert!(crate::ask(&machine, "PUT", "/machine/working-set").starts_with("HTTP/1.1 500"));
    machine.console.write_all(b"q").unwrap();
    assert_eq!(machine.wait().code(), Some(0));
    assert!(machine.log().contains("writing the working set"), "{}", machine.log());
}

#[test]
fn a_reset_writes_the_working_set_and_lets_go_of_the_snapshot() {
    let files = written();
    let record = tempfile::tempfile().unwrap();
    let with = With { record: Some(&record), ..With::default() };
    let Some(mut machine) = restore(&files, with) else { return };
    assert_eq!(print(&mut machine), sum(0));
    assert!(crate::put_power(&machine, "reset").starts_with("HTTP/1.1 204"));
    let told =
        machine.wait_for(|event| matches!(event, Event::WorkingSetRecorded { .. } | Event::Reset { .. }));
    assert!(matches!(told, Event::WorkingSetRecorded { .. }), "{told:?}");
    // What it was given to boot.
    let (status, output) = machine.end();
    assert_eq!((status.code(), output.as_slice()), (Some(0), b"hello\n".as_slice()));
    assert!(pages(&record).contains(&FIRST));
}

#[test]
fn a_page_comes_from_the_newest_file_that_has_it() {
    let mut machine = start(guests::letters());
    assert_eq!(print(&mut machine), *b"aaa");
    let (full, _) = take(&machine, r#"{"track":true}"#);
    assert_eq!(print(&mut machine), *b"bbb");
    let (first, _) = take(&machine, r#"{"kind":"difference","track":true}"#);
    assert_eq!(print(&mut machine), *b"ccc");
    let (second, two) = take(&machine, r#"{"kind":"difference"}"#);
    machine.kill();
    let chain = [&full.memory, &first.memory, &second.memory];
    let tracked = With { track: true, ..With::default() };
    let Some(mut machine) = restore_chain(&config(), tracked, &second.state, &chain) else { return };
    assert_eq!(print(&mut machine), *b"ddd");
    // And it can be copied itself: what has changed, and as a whole, with what it has never touched.
    let (third, taken) = take(&machine, r#"{"kind":"difference","track":true}"#);
    assert_eq!(taken.parent, Some(two.id));
    assert_eq!(print(&mut machine), *b"eee");
    let (whole, SnapshotTaken { parent: None, .. }) = take(&machine, "{}") else { panic!() };
    assert_eq!(counter(&machine, "owed"), 0);
    assert_eq!(print(&mut machine), *b"fff");
    machine.kill();
    let longer = [chain.as_slice(), &[&third.memory]].concat();
    let mut machine = restore_chain(&config(), With::default(), &third.state, &longer).unwrap();
    assert_eq!(print(&mut machine), *b"eee");
    let mut machine = restore(&whole, With::default()).unwrap();
    assert_eq!(print(&mut machine), *b"fff");
}

#[test]
fn a_copy_of_a_copy_has_what_was_never_touched() {
    let files = written();
    let Some(machine) = restore(&files, With::default()) else { return };
    let copy = snapshot::snapshot(&machine);
    drop(machine);
    let mut machine = restore(&copy, With::default()).unwrap();
    for eight in 0..8 {
        assert_eq!(print(&mut machine), sum(eight));
    }
}

#[test]
fn several_go_on_from_one_file_at_once() {
    let files = written();
    let Some(first) = restore(&files, With::default()) else { return };
    let more = (0..3).map(|_| restore(&files, With::default()).unwrap());
    let mut clones: Vec<_> = [first].into_iter().chain(more).collect();
    for eight in 0..8 {
        for clone in &mut clones {
            assert_eq!(print(clone), sum(eight));
        }
    }
}

#[test]
fn two_processors_go_on_and_a_pause_holds_them() {
    let config = MachineConfig { cpus: 2, ..config() };
    let mut machine = Machine::start_with(&config, &crate::machine::elf(guests::letters()));
    assert_eq!(print(&mut machine), *b"aaa");
    let files = snapshot::snapshot(&machine);
    machine.kill();
    let restored = restore_chain(&config, With::default(), &files.state, &[&files.memory]);
    let Some(mut machine) = restored else { return };
    machine.wait_for(|event| matches!(event, Event::Running { .. }));
    for letters in [b"bbb", b"ccc"] {
        assert!(crate::ask(&machine, "PUT", "/machine/pause").starts_with("HTTP/1.1 204"));
        assert!(crate::ask(&machine, "PUT", "/machine/resume").starts_with("HTTP/1.1 204"));
        assert_eq!(print(&mut machine), *letters);
    }
}

/// A guest that writes to two pages, says so, waits until the host wants a page, gives the first, and prints both.
fn giver() -> Vec<u8> {
    const CONFIG: u64 = 0x2000;
    let (given, kept, list) = (BUFFERS, BUFFERS + 4096, BUFFERS + 3 * 4096);
    let (mut script, mut driver) = (Script::default(), Driver::new(BALLOON));
    driver.start(&mut script, &[0, 1]);
    script.bytes(given, b"g");
    script.bytes(kept, b"k");
    script.write(once(Width::Double, list, given / 4096));
    script.write_port(once(Width::Byte, 0x3f8, b'1'.into()));
    // How many pages are wanted is the first field of the configuration.
    script.wait_for_ever(driver.bar + CONFIG, u32::MAX, 1);
    driver.describe(&mut script, 0, 0, Descriptor { address: list, len: 4, flags: 0, next: 0 });
    driver.offer(&mut script, 0, 0);
    driver.kick(&mut script, 0);
    driver.wait(&mut script, 0);
    script.print_from(given);
    script.print_from(kept);
    script.kernel()
}

#[test]
fn a_page_that_the_balloon_has_taken_is_zero_and_not_the_snapshots() {
    let mut machine = Machine::start_with(&config(), &giver());
    let mut said = [0];
    machine.console.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"1");
    let (files, _) = take(&machine, r#"{"track":true}"#);
    machine.kill();
    let tracked = With { track: true, ..With::default() };
    let Some(mut machine) = restore(&files, tracked) else { return };
    let request = crate::hot_plug::with_body("PUT", "/machine/balloon", r#"{"target_bytes":4096}"#);
    assert!(crate::request(&machine, &request).starts_with("HTTP/1.1 200"));
    let mut printed = [0; 3];
    machine.console.read_exact(&mut printed).unwrap();
    assert_eq!(&printed, b"\0k.");
    // Nor does it come back by a difference.
    let (difference, _) = take(&machine, r#"{"kind":"difference"}"#);
    machine.kill();
    let chain = [&files.memory, &difference.memory];
    let machine = restore_chain(&config(), With::default(), &difference.state, &chain).unwrap();
    let whole = snapshot::snapshot(&machine);
    let byte = |page: u64| content(&whole.memory)[usize::try_from(page).unwrap()];
    assert_eq!([byte(BUFFERS), byte(BUFFERS + 4096)], [0, b'k']);
}

/// Waits for the end of one whose memory is lost.
fn is_lost(mut machine: Machine) {
    let end = machine.wait_for(|event| matches!(event, Event::Ended { .. }));
    let Event::Ended { exit, failure: Some(failure), .. } = &end else { panic!("{end:?}") };
    assert_eq!(*exit, Exit::Failed(FailureKind::BrokenSnapshot));
    assert!(failure.message.contains("memory file 0 was cut short while the machine ran"), "{failure:?}");
    assert_eq!(machine.wait().code(), Some(FailureKind::BrokenSnapshot.code().into()));
    assert_eq!((machine.event(), machine.record()), (None, end), "it is told once");
}

fn try_put(machine: &Machine, path: &str) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(&machine.control)?;
    stream.write_all(format!("PUT {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").as_bytes())?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

#[test]
fn a_file_that_is_cut_short_ends_the_machine_whoever_waits() {
    let whole = written();
    type Touch = fn(&mut Machine);
    let touches: [Touch; 4] = [
        |machine| machine.console.write_all(b"r").unwrap(),
        // All of it is wanted, and so none of it can be written.
        |machine| {
            let answer = snapshot::ask_for_snapshot(machine, "{}", &Files::new());
            assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("given up"), "{answer}");
        },
        // The event loop does not hear of it.
        |machine| {
            // When this is answered, all vCPUs have their threads.
            get::<Metrics>(machine, "/metrics");
            let Some(birth) = Birth::of(machine) else { return machine.console.write_all(b"r").unwrap() };
            let files = Files::new();
            let request = crate::hot_plug::with_body("POST", "/machine/snapshot", "{}");
            let stream = machine.connect(&machine.control);
            machine::say(&stream, &request, &[files.state.as_fd(), files.memory.as_fd()]);
            let held = birth.hold_both();
            machine.console.read_to_end(&mut Vec::new()).unwrap();
            held.end();
        },
        // It waits for a vCPU that waits, unless the guest has not come so far.
        |machine| {
            machine.console.write_all(b"r").unwrap();
            for path in ["/machine/pause", "/machine/resume"] {
                // Whether there is somebody to answer is not what matters here.
                let _ = try_put(machine, path);
            }
        },
    ];
    for touch in touches {
        let files = whole.copy();
        let Some(mut machine) = restore(&files, With::default()) else { return };
        machine.wait_for(|event| matches!(event, Event::Running { .. }));
        files.memory.set_len(u64::from(FIRST) * 4096).unwrap();
        touch(&mut machine);
        is_lost(machine);
    }
}

#[test]
fn without_the_device_the_system_call_does_it() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: not root");
    }
    let files = written();
    let backend = MemoryBackend::Userfaultfd { device: None, prefetch: None, record: None };
    let memory = [&files.memory];
    let mut machine = snapshot::restore_by(&config(), false, backend, vec![], &files.state, &memory);
    assert_eq!(print(&mut machine), sum(0));
}

#[test]
fn one_whose_memory_is_brought_in_is_small_too() {
    const BUDGET_KIB: u64 = 5 * 1024;
    let files = written();
    let Some(first) = restore(&files, With::default()) else { return };
    // What is of the program's file they share.
    let mut machines = [first, restore(&files, With::default()).unwrap()];
    for machine in &mut machines {
        for eight in 0..8 {
            assert_eq!(print(machine), sum(eight));
        }
    }
    let kinds = ["Private_Clean:", "Private_Dirty:"];
    let kib = crate::memory::kib_beyond_the_guests(machines[0].process.id(), &kinds);
    assert!((1..=BUDGET_KIB).contains(&kib), "{kib} KiB beyond the guest's memory");
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let files = written();
    let record = tempfile::tempfile().unwrap();
    let Some(mut machine) = restore(&files, With { record: Some(&record), ..With::default() }) else {
        return;
    };
    machine.console.write_all(b"q").unwrap();
    assert_eq!(machine.wait().code(), Some(0));
    let spoilt = |bytes: &[u8], at| {
        let copy = tempfile::tempfile().unwrap();
        copy.write_all_at(&content(&record), 0).unwrap();
        copy.write_all_at(bytes, at).unwrap();
        refused_by(restore(&files, With { prefetch: Some(&copy), ..With::default() }).unwrap())
    };
    for (kind, text, (seen, message)) in [
        (FailureKind::BrokenSnapshot, "magic number", spoilt(b"E", 0)),
        (FailureKind::SnapshotVersion, "format 2", spoilt(&[2], 8)),
        (FailureKind::BrokenSnapshot, "checksum", spoilt(&[0xff], 58)),
        (FailureKind::BrokenSnapshot, "none has more than", spoilt(&[0xff; 8], 40)),
    ] {
        assert_eq!(seen, kind, "{message}");
        assert!(message.contains(text), "{text}: {message}");
    }
    // One of another snapshot.
    let other = written();
    let with = With { prefetch: Some(&record), ..With::default() };
    let (kind, message) = refused_by(restore(&other, with).unwrap());
    assert_eq!(kind, FailureKind::BrokenSnapshot);
    assert!(message.contains("of another snapshot"), "{message}");
    let both = With { prefetch: Some(&record), record: Some(&record), track: false };
    let (kind, message) = refused_by(restore(&files, both).unwrap());
    assert_eq!(kind, FailureKind::Usage, "{message}");
    // What makes no userfaultfd.
    let null = File::open("/dev/null").unwrap();
    let machine = restore_by(&null, &config(), With::default(), &files.state, &[&files.memory]);
    assert_eq!(refused_by(machine).0, FailureKind::NoUserfaultfd);
}
