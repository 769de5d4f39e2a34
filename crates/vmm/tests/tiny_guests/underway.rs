//! While a snapshot is being written, the machine answers, changes nothing, and still ends when it is told to.
//!
//! The thread that writes is held before its first line, so that it takes as long as each test wants.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
};

use ec2vmm_vmm_api::{
    Event, Exit, FailureKind,
    control::{Machine as View, SnapshotTaken, State},
};

use crate::{
    ask, get, guests,
    held::{Birth, Held},
    hot_plug::with_body,
    machine::{self, Machine},
    put_power,
    snapshot::{self, Files, content, print, refused_by, start, take},
};

/// Asks for a snapshot, and holds it. The connection on which it will be answered.
fn begin(machine: &Machine, files: &Files) -> Option<(UnixStream, Held)> {
    let birth = Birth::of(machine)?;
    let stream = machine.connect(&machine.control);
    let descriptors = [files.state.as_fd(), files.memory.as_fd()];
    machine::say(&stream, &with_body("POST", "/machine/snapshot", "{}"), &descriptors);
    let held = birth.hold();
    assert_eq!(get::<View>(machine, "/machine").state, State::Snapshotting);
    Some((stream, held))
}

fn answer(mut stream: UnixStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn taken(stream: UnixStream) -> SnapshotTaken {
    let answer = answer(stream);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap()
}

#[test]
fn it_answers_and_nothing_changes() {
    let mut machine = start(guests::letters());
    assert_eq!(print(&mut machine), *b"aaa");
    let files = Files::new();
    let Some((stream, held)) = begin(&machine, &files) else { return };
    for path in ["/metrics", "/machine/disks", "/machine/nets", "/machine/balloon"] {
        assert!(ask(&machine, "GET", path).starts_with("HTTP/1.1 200"), "{path}");
    }
    let mut events = machine.connect(&machine.control);
    events.write_all(b"GET /events HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
    assert!(BufReader::new(events).lines().any(|line| line.unwrap().contains(r#""paused""#)));
    let refused = |answer: String, what: &str| {
        assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("being written"), "{what}: {answer}");
    };
    for path in ["/machine/pause", "/machine/resume"] {
        refused(ask(&machine, "PUT", path), path);
    }
    for action in ["power_button", "reset"] {
        refused(put_power(&machine, action), action);
    }
    for (method, path, body) in [
        ("PUT", "/machine/balloon", r#"{"target_bytes":4096}"#),
        ("POST", "/machine/disks", r#"{"id":"a","layers":["raw"],"serial":"s"}"#),
        ("POST", "/machine/nets", r#"{"id":"n","mac":[2,0,0,0,0,1]}"#),
        ("DELETE", "/machine/disks/a", ""),
        ("PUT", "/machine/disks/a/size", "{}"),
        ("PUT", "/machine/disks/a/limit", "{}"),
        ("DELETE", "/machine/nets/n", ""),
        ("PUT", "/machine/nets/n/limits", "{}"),
    ] {
        refused(crate::request(&machine, &with_body(method, path, body)), path);
    }
    let other = Files::new();
    refused(snapshot::ask_for_snapshot(&machine, "{}", &other), "a second one");
    assert_eq!(content(&other.memory), b"", "nothing is written into its files");
    held.release();
    assert!(taken(stream).memory_bytes >= 4096);
    assert_eq!(get::<View>(&machine, "/machine").state, State::Running);
    assert_eq!(print(&mut machine), *b"bbb");
    assert_eq!(print(&mut snapshot::restore(&files)), *b"bbb");
}

#[test]
fn the_end_comes_first_and_the_files_are_no_snapshot() {
    type End = fn(&mut Machine) -> Exit;
    let ends: [End; 2] = [
        |machine| {
            assert!(put_power(machine, "power_off").starts_with("HTTP/1.1 204"));
            Exit::PowerOff
        },
        |machine| {
            machine.lifeline = None;
            Exit::Abandoned
        },
    ];
    for end in ends {
        let mut machine = start(guests::letters());
        assert_eq!(print(&mut machine), *b"aaa");
        // Into the files of one that was whole.
        let (files, _) = take(&machine, "{}");
        let Some((stream, held)) = begin(&machine, &files) else { return };
        let exit = end(&mut machine);
        let ended = machine.wait_for(|event| matches!(event, Event::Ended { .. }));
        assert!(matches!(ended, Event::Ended { exit: told, failure: None, .. } if told == exit), "{ended:?}");
        let answer = answer(stream);
        assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("given up"), "{answer}");
        held.end();
        assert_eq!(machine.wait().code(), Some(exit.code().into()));
        let (kind, message) = refused_by(snapshot::restore(&files));
        assert_eq!(kind, FailureKind::BrokenSnapshot, "{message}");
    }
}

#[test]
fn a_client_that_goes_away_does_not_stop_it() {
    let mut machine = start(guests::letters());
    assert_eq!(print(&mut machine), *b"aaa");
    let files = Files::new();
    let Some((stream, held)) = begin(&machine, &files) else { return };
    drop(stream);
    assert_eq!(get::<View>(&machine, "/machine").state, State::Snapshotting);
    held.release();
    machine.wait_for(|event| matches!(event, Event::Resumed { .. }));
    assert_eq!(print(&mut machine), *b"bbb");
    assert_eq!(print(&mut snapshot::restore(&files)), *b"bbb");
    // And the next is answered to whom it belongs.
    take(&machine, "{}");
}

#[test]
fn one_that_cannot_be_written_leaves_the_machine_as_it_was() {
    let mut machine = start(guests::letters());
    assert_eq!(print(&mut machine), *b"aaa");
    let full =
        Files { memory: std::fs::File::options().write(true).open("/dev/full").unwrap(), ..Files::new() };
    for paused in [false, true] {
        if paused {
            assert!(ask(&machine, "PUT", "/machine/pause").starts_with("HTTP/1.1 204"));
        }
        let answer = snapshot::ask_for_snapshot(&machine, "{}", &full);
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("memory file"), "{answer}");
        let state = if paused { State::Paused } else { State::Running };
        assert_eq!(get::<View>(&machine, "/machine").state, state);
    }
    assert!(ask(&machine, "PUT", "/machine/resume").starts_with("HTTP/1.1 204"));
    assert_eq!(print(&mut machine), *b"bbb");
}
