//! The machine process on guests of a few instructions. Any `/dev/kvm` will do, even an emulated one.
#![allow(unsafe_code, reason = "machine code between two labels")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests"
)]

mod elf;
mod guests;
mod held;
mod hostile;
mod hot_plug;
mod machine;
mod memory;
mod pause;
mod power;
mod reboots;
mod snapshot;
mod stuck;
mod underway;
mod userfaultfd;

use std::io::{BufRead, BufReader, Read, Write};

use ec2vmm_vmm_api::{Event, Exit, FailureKind, MachineConfig, config, control};
use machine::{Machine, elf};

fn ends_with(guest: &[u8], exit: Exit) -> Vec<u8> {
    let mut machine = Machine::start(guest);
    let ended = machine.wait_for(|event| matches!(event, Event::Ended { .. }));
    let Event::Ended { exit: reported, .. } = ended else { unreachable!() };
    assert_eq!(reported, exit);
    let (status, output) = machine.end();
    assert_eq!(status.code(), Some(exit.code().into()));
    output
}

/// Asks for what has no body, and hears the whole answer.
fn ask(machine: &Machine, method: &str, path: &str) -> String {
    request(machine, &format!("{method} {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n"))
}

/// What a resource is.
fn get<T: serde::de::DeserializeOwned>(machine: &Machine, path: &str) -> T {
    let answer = ask(machine, "GET", path);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap()
}

fn request(machine: &Machine, request: &str) -> String {
    let mut stream = machine.connect(&machine.control);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn put_power(machine: &Machine, action: &str) -> String {
    put_power_request(machine, &format!("{{\"action\":\"{action}\"}}"))
}

fn put_power_request(machine: &Machine, body: &str) -> String {
    let len = body.len();
    request(
        machine,
        &format!(
            "PUT /machine/power HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
        ),
    )
}

#[test]
fn power_off_ends_with_status_0() {
    ends_with(guests::power_off(), Exit::PowerOff);
}

#[test]
fn a_triple_fault_has_its_own_status() {
    ends_with(guests::triple_fault(), Exit::Failed(FailureKind::TripleFault));
}

#[test]
fn a_panic_has_its_own_status() {
    ends_with(guests::panic(), Exit::Failed(FailureKind::GuestPanic));
}

#[test]
fn an_internal_error_of_kvm_has_its_own_status() {
    ends_with(guests::execute_device_memory(), Exit::Failed(FailureKind::KvmInternalError));
}

#[test]
fn what_the_guest_prints_reaches_the_console_before_the_end() {
    assert_eq!(ends_with(guests::hello(), Exit::PowerOff), b"hello\n");
}

#[test]
fn the_guest_reads_what_the_console_is_sent() {
    let mut machine = Machine::start(guests::echo());
    // More than the serial port's buffer holds.
    let text = [b"0123456789".repeat(500), b"q".to_vec()].concat();
    let mut writer = machine.console.try_clone().unwrap();
    let sent = text.clone();
    let sender = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut output = vec![0; text.len()];
    machine.console.read_exact(&mut output).unwrap();
    sender.join().unwrap();
    assert_eq!(output, text);
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn an_instruction_that_repeats_is_an_access_each_time() {
    let mut machine = Machine::start(guests::strings());
    machine.console.write_all(b"abc").unwrap();
    let mut output = [0; 3];
    machine.console.read_exact(&mut output).unwrap();
    assert_eq!(&output, b"abc");
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn a_flood_that_nobody_reads_neither_blocks_nor_grows() {
    let mut machine = Machine::start(guests::flood());
    machine.wait_for(|event| matches!(event, Event::Running { .. }));
    // It still answers, and still ends when told to.
    assert!(put_power(&machine, "power_off").starts_with("HTTP/1.1 204"));
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn what_was_printed_is_there_after_a_hard_kill() {
    let mut machine = Machine::start(guests::echo());
    let text = b"0123456789".repeat(900);
    let mut writer = machine.console.try_clone().unwrap();
    let sent = text.clone();
    let sender = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut output = vec![0; text.len()];
    machine.console.read_exact(&mut output).unwrap();
    sender.join().unwrap();
    machine.kill();
    assert!(machine.console_log() == text);
    assert!(matches!(machine.record(), Event::Running { .. }));
}

#[test]
fn those_who_come_by_the_consoles_socket_see_and_type() {
    let machine = Machine::start(guests::echo());
    let [mut one, mut two] = [(); 2].map(|()| machine.connect(&machine.console_socket));
    let mut seen = [0; 3];
    one.write_all(b"abc").unwrap();
    one.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"abc");
    // The second was let in before, or with, what it sees; it may have missed what came before.
    two.write_all(b"xyz").unwrap();
    one.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"xyz");
    let mut last = [0; 1];
    while last != *b"z" {
        two.read_exact(&mut last).unwrap();
    }
    // What was typed counts, even if the one who typed has left.
    two.write_all(b"q").unwrap();
    drop(two);
    one.read_exact(&mut last).unwrap();
    assert_eq!(&last, b"q");
    assert_eq!(one.read(&mut last).unwrap(), 0);
    let (status, output) = machine.end();
    assert_eq!((status.code(), output.as_slice()), (Some(0), b"abcxyzq".as_slice()));
}

#[test]
fn more_than_may_look_at_the_console_find_the_door_closed() {
    let mut machine = Machine::start(guests::flood());
    let mut lookers: Vec<_> = (0..9).map(|_| machine.connect(&machine.console_socket)).collect();
    let mut last = lookers.pop().unwrap();
    assert_eq!(last.read_to_end(&mut Vec::new()).unwrap(), 0);
    // Nobody reads, and the guest goes on; one who leaves makes room.
    lookers.pop().unwrap().read_exact(&mut [0; 1000]).unwrap();
    let mut seen = [0; 100_000];
    while machine.connect(&machine.console_socket).read_exact(&mut seen).is_err() {}
    assert!(seen.iter().all(|&byte| byte == b'x'));
    machine.kill();
    assert_eq!(machine.console_log().len() as u64, config::CONSOLE_LOG_BYTES);
}

#[test]
fn events_are_recorded_and_followed() {
    let machine = Machine::start(guests::wait_for_power_button());
    let follow = || {
        let mut stream = machine.connect(&machine.control);
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
        BufReader::new(stream).lines().map(Result::unwrap)
    };
    let mut early = follow();
    assert_eq!(early.next().unwrap(), "HTTP/1.1 200 OK");
    assert_eq!(early.next().unwrap(), "Content-Type: application/x-ndjson");
    let read = |line: String| serde_json::from_str::<Event>(&line).unwrap();
    let running = |line: &String| line.contains("running");
    read(early.find(running).unwrap());
    assert!(matches!(machine.record(), Event::Running { .. }));
    let mut late = follow();
    late.find(running).unwrap();
    put_power(&machine, "reset");
    for stream in [&mut early, &mut late] {
        assert!(matches!(read(stream.next().unwrap()), Event::Reset { .. }));
        assert!(matches!(read(stream.next().unwrap()), Event::Loaded { .. }));
        assert!(matches!(read(stream.next().unwrap()), Event::Running { .. }));
    }
    put_power(&machine, "power_button");
    for mut stream in [early, late] {
        let ended = read(stream.next().unwrap());
        assert!(matches!(ended, Event::Ended { exit: Exit::PowerOff, failure: None, .. }), "{ended:?}");
        assert_eq!(stream.next(), None);
    }
    assert!(matches!(machine.record(), Event::Ended { exit: Exit::PowerOff, .. }));
}

#[test]
fn an_owner_who_never_reads_events_does_not_hold_the_machine_up() {
    let mut config = machine::config();
    // Every reboot tells of it.
    let cmdline = "x".repeat(1500);
    config.boot = config::Boot::Files { kernel: machine::KERNEL, initrd: None, cmdline };
    let machine = Machine::start_with(&config, &elf(guests::reset()));
    let mut stream = machine.connect(&machine.control);
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
    // More than the socket for events takes, and what may wait for it.
    let mut reboots = 0;
    while reboots < 30 {
        reboots = get::<control::Machine>(&machine, "/machine").reboots;
    }
    assert!(put_power(&machine, "power_off").starts_with("HTTP/1.1 204"));
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn the_record_tells_why_there_is_no_machine() {
    let mut machine = Machine::start_with(&machine::config(), b"no kernel");
    machine.wait();
    let recorded = machine.record();
    let Event::Ended { failure: Some(failure), .. } = &recorded else { panic!("{recorded:?}") };
    assert_eq!(failure.kind, FailureKind::WrongKernel);
    assert_eq!(Some(recorded), machine.event());
}

#[test]
fn a_reset_reboots_in_the_same_process() {
    let mut machine = Machine::start(guests::reset());
    let pid = machine.process.id();
    for _ in 0..20 {
        machine.wait_for(|event| matches!(event, Event::Reset { .. }));
        machine.wait_for(|event| matches!(event, Event::Running { .. }));
    }
    assert_eq!(machine.process.id(), pid);
    assert!(machine.process.try_wait().unwrap().is_none());
}

#[test]
fn letting_go_of_the_lifeline_ends_the_machine() {
    for guest in [guests::idle(), guests::spin()] {
        let mut machine = Machine::start(guest);
        machine.wait_for(|event| matches!(event, Event::Running { .. }));
        machine.lifeline = None;
        assert_eq!(machine.end().0.code(), Some(Exit::Abandoned.code().into()));
    }
}

#[test]
fn metrics_count_the_exits_of_the_guest() {
    let mut machine = Machine::start(guests::echo());
    machine.console.write_all(b"x").unwrap();
    machine.console.read_exact(&mut [0]).unwrap();
    let metrics: control::Metrics = get(&machine, "/metrics");
    assert!(metrics.devices["vcpu"]["port_exits"] >= 3);
}

#[test]
fn the_memory_map_is_the_machines() {
    let mut config = machine::config();
    config.memory_mib = 3 * 1024 + 512;
    let machine = Machine::start_with(&config, &elf(guests::print_memory_map()));
    let (status, output) = machine.end();
    assert_eq!(status.code(), Some(0));
    let (&count, entries) = output.split_first().unwrap();
    let entries: Vec<(u64, u64, u32)> = entries
        .chunks_exact(20)
        .map(|entry| {
            let word = |range: std::ops::Range<usize>| u64::from_le_bytes(entry[range].try_into().unwrap());
            (word(0..8), word(8..16), u32::from_le_bytes(entry[16..].try_into().unwrap()))
        })
        .collect();
    assert_eq!(entries.len(), usize::from(count));
    let ram: u64 = entries.iter().filter(|entry| entry.2 == 1).map(|entry| entry.1).sum();
    assert_eq!(
        ram,
        (config.memory_mib << 20) - (0x10_0000 - 0x9_fc00),
        "all but what is reserved below 1 MiB"
    );
    assert!(entries.contains(&(0x1_0000_0000, 512 << 20, 1)), "{entries:x?}");
}

#[test]
fn the_second_processor_starts() {
    let mut config = machine::config();
    config.cpus = 2;
    let (status, output) = Machine::start_with(&config, &elf(guests::second_processor())).end();
    assert_eq!((status.code(), output.as_slice()), (Some(0), b"2".as_slice()));
}

#[test]
fn the_most_processors_that_a_machine_can_have() {
    let mut config = machine::config();
    config.cpus = config::CPUS_MAX;
    let (status, output) = Machine::start_with(&config, &elf(guests::hello())).end();
    assert_eq!((status.code(), output.as_slice()), (Some(0), b"hello\n".as_slice()));
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    type Spoil = fn(&mut MachineConfig);
    let cases: [(&str, Spoil); 8] = [
        ("of another version", |config| config.version += 1),
        ("1 to 64 vCPUs", |config| config.cpus = 65),
        ("1 to 64 vCPUs", |config| config.cpus = 0),
        ("at least 32 MiB", |config| config.memory_mib = config::MEMORY_MIB_MIN - 1),
        ("a whole number of 2 MiB", |config| (config.memory_mib, config.huge_pages) = (63, true)),
        ("is not open", |config| config.kvm = 1000),
        // One that the process opens for itself later would be there if it was looked for late.
        ("is not open", |config| config.lifeline = Some(12)),
        ("is used twice", |config| config.record = config.console_log),
    ];
    for (text, spoil) in cases {
        let mut config = machine::config();
        spoil(&mut config);
        let mut machine = Machine::start_with(&config, &elf(guests::power_off()));
        let Some(Event::Ended { exit, failure: Some(failure), .. }) = machine.event() else {
            panic!("{text}")
        };
        assert_eq!(exit, Exit::Failed(FailureKind::Usage));
        assert!(failure.message.contains(text), "{}", failure.message);
        assert_eq!(machine.end().0.code(), Some(2));
    }
}

#[test]
fn a_machine_has_all_its_huge_pages_or_is_not_started() {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let free = meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).unwrap();
    let free_mib = free.trim().parse::<u64>().unwrap() * config::HUGE_PAGE_MIB;
    let mut config = machine::config();
    config.huge_pages = true;
    if config.memory_mib <= free_mib {
        let (status, output) = Machine::start_with(&config, &elf(guests::hello())).end();
        assert_eq!((status.code(), output.as_slice()), (Some(0), b"hello\n".as_slice()));
    }
    config.memory_mib = free_mib + 64;
    let mut machine = Machine::start_with(&config, &elf(guests::hello()));
    let Some(Event::Ended { exit, failure: Some(failure), .. }) = machine.event() else { panic!() };
    assert_eq!(exit, Exit::Failed(FailureKind::Memory));
    assert!(failure.hint.unwrap().contains("vm.nr_hugepages"));
}

#[test]
fn a_file_that_is_no_kernel_is_refused() {
    for (kernel, text) in
        [(&b"#!/bin/sh"[..], "neither a bzImage nor an ELF"), (b"", "neither a bzImage nor an ELF")]
    {
        let mut machine = Machine::start_with(&machine::config(), kernel);
        let Some(Event::Ended { exit, failure: Some(failure), .. }) = machine.event() else {
            panic!("{text}")
        };
        assert_eq!(exit, Exit::Failed(FailureKind::WrongKernel));
        assert!(failure.message.contains(text), "{}", failure.message);
    }
}
