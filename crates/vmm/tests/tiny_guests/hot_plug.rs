//! Devices come and go while the guest runs: at the level of the registers.

use std::{
    fs::File,
    io::{IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use ec2vmm_vmm_api::{
    Event,
    config::DISKS_MAX,
    control::{self, Disk, Disks},
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::{ask, get, guests, machine::Machine, put_power};

/// Asks for something, with descriptors.
pub(crate) fn send(machine: &Machine, request: &str, descriptors: &[BorrowedFd<'_>]) -> String {
    let mut stream = machine.connect(&machine.control);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    rustix::net::sendmsg(&stream, &[IoSlice::new(request.as_bytes())], &mut ancillary, SendFlags::empty())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn with_body(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn attach_disk(machine: &Machine, id: &str, files: &[BorrowedFd<'_>]) -> String {
    let body = format!(r#"{{"id":"{id}","layers":["raw"],"serial":"s-{id}"}}"#);
    send(machine, &with_body("POST", "/machine/disks", &body), files)
}

fn disk_file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    file
}

fn read(console: &mut UnixStream, expected: &str) {
    let mut seen = vec![0; expected.len()];
    console.read_exact(&mut seen).unwrap();
    assert_eq!(String::from_utf8_lossy(&seen), expected);
}

/// How many descriptors the machine process has, but for sockets: a connection may still be on its way out.
fn descriptors(machine: &Machine) -> usize {
    let all = std::fs::read_dir(format!("/proc/{}/fd", machine.process.id())).unwrap();
    let targets = all.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    targets.filter(|target| !target.to_string_lossy().starts_with("socket:")).count()
}

fn ids(machine: &Machine) -> Vec<String> {
    get::<Disks>(machine, "/machine/disks").disks.into_iter().map(|disk| disk.id).collect()
}

/// A machine whose guest runs, and that has served a request.
fn running(guest: &[u8]) -> Machine {
    let mut machine = Machine::start(guest);
    machine.wait_for(|event| matches!(event, Event::Running { .. }));
    assert!(ids(&machine).is_empty());
    machine
}

fn detached(machine: &mut Machine) -> String {
    let event = machine.wait_for(|event| matches!(event, Event::Detached { .. }));
    let Event::Detached { id, .. } = event else { unreachable!() };
    id
}

#[test]
fn a_guest_sees_a_disk_come_and_lets_it_go() {
    let mut machine = running(guests::hot_plug());
    let before = descriptors(&machine);
    let file = disk_file();
    for round in 0..10 {
        let answer = attach_disk(&machine, "vol-1", &[file.as_fd()]);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        let disk: Disk = serde_json::from_str(body).unwrap();
        assert_eq!((disk.id.as_str(), disk.pci_device, disk.size_bytes), ("vol-1", 5, 1 << 20));
        machine.wait_for(|event| matches!(event, Event::Attached { id, .. } if id == "vol-1"));
        // The event, and there it is in configuration space.
        read(&mut machine.console, "+d");
        assert_eq!(ids(&machine), ["vol-1"]);
        assert!(descriptors(&machine) > before);

        let answer = ask(&machine, "DELETE", "/machine/disks/vol-1");
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
        // Once the guest has let go of it, it is not there any more.
        read(&mut machine.console, "-e");
        assert_eq!(detached(&mut machine), "vol-1");
        assert!(ids(&machine).is_empty());
        assert_eq!(descriptors(&machine), before, "round {round}");
    }
}

#[test]
fn one_that_does_not_answer_is_forced_to_let_go() {
    let mut machine = running(guests::idle());
    let before = descriptors(&machine);
    let file = disk_file();
    for asks_first in [false, true] {
        attach_disk(&machine, "vol-1", &[file.as_fd()]);
        if asks_first {
            for _ in 0..2 {
                let answer = ask(&machine, "DELETE", "/machine/disks/vol-1");
                assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
            }
            assert!(get::<Disk>(&machine, "/machine/disks/vol-1").leaving);
        }
        let answer = ask(&machine, "DELETE", "/machine/disks/vol-1?force=true");
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        assert_eq!(detached(&mut machine), "vol-1");
        assert_eq!(descriptors(&machine), before);
    }
}

#[test]
fn a_guest_cannot_let_go_of_what_nobody_asked_for() {
    let mut machine = running(guests::eject_all());
    let file = disk_file();
    attach_disk(&machine, "vol-1", &[file.as_fd()]);
    // It has ejected every slot many times.
    let exits =
        |machine: &Machine| get::<control::Metrics>(machine, "/metrics").devices["vcpu"]["port_exits"];
    let before = exits(&machine);
    while exits(&machine) < before + 100 {}
    assert_eq!(ids(&machine), ["vol-1"]);
    ask(&machine, "DELETE", "/machine/disks/vol-1");
    assert_eq!(detached(&mut machine), "vol-1");
}

#[test]
fn a_reset_keeps_what_is_there_and_ends_what_is_leaving() {
    let mut machine = running(guests::idle());
    let file = disk_file();
    attach_disk(&machine, "stays", &[file.as_fd()]);
    attach_disk(&machine, "goes", &[file.as_fd()]);
    ask(&machine, "DELETE", "/machine/disks/goes");
    let before = descriptors(&machine);
    put_power(&machine, "reset");
    assert_eq!(detached(&mut machine), "goes");
    machine.wait_for(|event| matches!(event, Event::Running { .. }));
    assert_eq!(ids(&machine), ["stays"]);
    assert!(descriptors(&machine) < before);
    let answer = ask(&machine, "DELETE", "/machine/disks/stays?force=true");
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

#[test]
fn sixteen_disks_fit() {
    let mut machine = running(guests::hot_plug());
    let file = disk_file();
    let before = descriptors(&machine);
    for number in 0..DISKS_MAX {
        let answer = attach_disk(&machine, &format!("disk-{number}"), &[file.as_fd()]);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let full = descriptors(&machine);
    let answer = attach_disk(&machine, "one-more", &[file.as_fd()]);
    assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("all 16 places"), "{answer}");
    assert_eq!(descriptors(&machine), full);
    ask(&machine, "DELETE", "/machine/disks/disk-7");
    assert_eq!(detached(&mut machine), "disk-7");
    let answer = attach_disk(&machine, "one-more", &[file.as_fd()]);
    assert!(answer.contains(r#""pci_device":12"#), "{answer}");
    for id in ids(&machine) {
        ask(&machine, "DELETE", &format!("/machine/disks/{id}"));
        assert_eq!(detached(&mut machine), id);
    }
    assert_eq!(descriptors(&machine), before);
}

#[test]
fn a_disk_grows_is_limited_and_the_balloon_is_asked() {
    let machine = running(guests::idle());
    let file = disk_file();
    attach_disk(&machine, "vol-1", &[file.as_fd()]);
    let put = |path: &str, body: &str| {
        let answer = send(&machine, &with_body("PUT", path, body), &[]);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        body.to_owned()
    };
    let resize = |bytes: &str| -> u64 {
        let body = put("/machine/disks/vol-1/size", &format!(r#"{{"bytes":{bytes}}}"#));
        serde_json::from_str::<Disk>(&body).unwrap().size_bytes
    };
    // The file with it; as it is already; as somebody else has made the file.
    assert_eq!(resize("2097152"), 2 << 20);
    assert_eq!(file.metadata().unwrap().len(), 2 << 20);
    assert_eq!(resize("2097152"), 2 << 20);
    file.set_len((3 << 20) + 100).unwrap();
    let answer = send(&machine, &with_body("PUT", "/machine/disks/vol-1/size", r#"{"bytes":2097664}"#), &[]);
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("but the file has 3145828"), "{answer}");
    // Whole sectors: what is missing of the last reads as zeros, as with any file.
    let whole = (3 << 20) + 512;
    assert_eq!(resize("null"), whole);
    assert_eq!(get::<Disk>(&machine, "/machine/disks/vol-1").size_bytes, whole);

    let limit = r#"{"bandwidth":null,"operations":{"per_second":100,"burst":10}}"#;
    put("/machine/disks/vol-1/limit", limit);
    let now = get::<Disk>(&machine, "/machine/disks/vol-1").rate_limit;
    assert_eq!(serde_json::to_string(&now).unwrap(), limit);
    put("/machine/disks/vol-1/limit", "{}");
    assert!(get::<Disk>(&machine, "/machine/disks/vol-1").rate_limit.operations.is_none());

    put("/machine/balloon", r#"{"target_bytes":1048576}"#);
    let balloon = get::<control::Balloon>(&machine, "/machine/balloon");
    assert_eq!((balloon.target_bytes, balloon.actual_bytes), (1 << 20, 0));
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let machine = running(guests::idle());
    let (file, null) = (disk_file(), File::open("/dev/null").unwrap());
    let (socket, _other) = UnixStream::pair().unwrap();
    let empty = tempfile::tempfile().unwrap();
    let read_only = File::open("/proc/self/exe").unwrap();
    attach_disk(&machine, "taken", &[file.as_fd()]);
    let before = descriptors(&machine);
    let file = file.as_fd();
    let disk = |body: &str| with_body("POST", "/machine/disks", body);
    let raw = |id: &str| disk(&format!(r#"{{"id":"{id}","layers":["raw"],"serial":"s"}}"#));
    let net = |body: &str| with_body("POST", "/machine/nets", body);
    let queues = r#"{"id":"a","layers":["raw"],"serial":"s","queues":17}"#;
    let refused: &[(String, &[BorrowedFd<'_>], u16, &str)] = &[
        (raw("taken"), &[file], 409, "a device called taken already"),
        (raw("rng"), &[file], 409, "a device called rng already"),
        (raw("vcpu"), &[file], 409, "a device called vcpu already"),
        (raw(""), &[file], 400, "1 to 64 letters"),
        (raw("a/b"), &[file], 400, "1 to 64 letters"),
        (raw(&"a".repeat(65)), &[file], 400, "1 to 64 letters"),
        (raw("a"), &[], 400, "0 descriptors came, and it takes 1"),
        (raw("a"), &[file, file], 400, "2 descriptors came, and it takes 1"),
        (raw("a"), &[socket.as_fd()], 400, "layer 0: it is no file"),
        (raw("a"), &[null.as_fd()], 400, "layer 0: it is no file"),
        (raw("a"), &[read_only.as_fd()], 400, "open for reading only"),
        (raw("a"), &[empty.as_fd()], 400, "not a disk"),
        (disk(r#"{"id":"a","layers":["qcow2"],"serial":"s"}"#), &[file], 400, "qcow2"),
        (disk(r#"{"id":"a","layers":["raw","raw"],"serial":"s"}"#), &[file, file], 400, "hides the layers"),
        (disk(r#"{"id":"a","layers":[],"serial":"s"}"#), &[], 400, "1 to 32 files"),
        (
            disk(&format!(r#"{{"id":"a","layers":["raw"],"serial":"{}"}}"#, "s".repeat(21))),
            &[file],
            400,
            "longer than 20 bytes",
        ),
        (
            disk(r#"{"id":"a","layers":["raw"],"serial":"s","read_only":true,"scratch":true}"#),
            &[file],
            400,
            "nothing to throw away",
        ),
        (disk(r#"{"id":"a","layers":["raw"],"serial":"s","fd":3}"#), &[file], 400, "unknown field"),
        (net(r#"{"id":"a","mac":[2,0,0,0,0,1]}"#), &[file], 400, "not a tap"),
        (disk(queues), &[file], 400, "queues: 1 to 16"),
        (net(r#"{"id":"a","mac":[2,0,0,0,0,1],"mtu":67}"#), &[file], 400, "at least 68 bytes"),
        (with_body("PUT", "/machine/disks/none/limit", "{}"), &[], 404, "no disk none"),
        (with_body("PUT", "/machine/nets/taken/limits", "{}"), &[], 404, "no network interface taken"),
        (net(r#"{"id":"a","mac":[1,0,0,0,0,1]}"#), &[file], 400, "not the address of an interface"),
        (net(r#"{"id":"a","mac":[2,0,0,0,0,1]}"#), &[], 400, "0 descriptors came"),
        (with_body("DELETE", "/machine/disks/none", ""), &[], 404, "no disk none"),
        (with_body("DELETE", "/machine/nets/taken", ""), &[], 404, "no network interface taken"),
        (with_body("DELETE", "/machine/disks/rng", ""), &[], 404, "no disk rng"),
        (with_body("PUT", "/machine/disks/none/size", r#"{"bytes":null}"#), &[], 404, "no disk none"),
        (with_body("PUT", "/machine/disks/taken/size", r#"{"bytes":1000}"#), &[], 400, "no multiple of 512"),
        (with_body("PUT", "/machine/disks/taken/size", r#"{"bytes":512}"#), &[], 400, "can only grow"),
        (with_body("PUT", "/machine/balloon", r#"{"target_bytes":1}"#), &[], 400, "a multiple of 4096"),
        (with_body("PUT", "/machine/balloon", r#"{"target_bytes":67108864}"#), &[], 400, "67108864"),
    ];
    for (request, files, status, text) in refused {
        let answer = send(&machine, request, files);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}\n{answer}");
        assert!(answer.contains(text), "{request}\n{answer}");
        assert_eq!(descriptors(&machine), before, "{request}");
    }
    assert_eq!(ids(&machine), ["taken"]);

    ask(&machine, "PUT", "/machine/pause");
    let paused = [
        (raw("a"), vec![file]),
        (with_body("DELETE", "/machine/disks/taken", ""), vec![]),
        (with_body("DELETE", "/machine/disks/taken?force=true", ""), vec![]),
        (with_body("PUT", "/machine/disks/taken/size", r#"{"bytes":null}"#), vec![]),
    ];
    for (request, files) in paused {
        let answer = send(&machine, &request, &files);
        assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("it is paused"), "{answer}");
    }
    assert_eq!(descriptors(&machine), before);
    ask(&machine, "PUT", "/machine/resume");
    let answer = ask(&machine, "DELETE", "/machine/disks/taken?force=true");
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}
