//! Devices by the control socket, and the descriptors that come with them.

use std::{
    env, fs,
    io::{self, IoSlice, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use ec2vmm_vmm_api::control::{LAYERS_MAX, openapi};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::{
    routes,
    tests::{Served, hear},
};

pub(super) fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: m\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn attach(id: &str, layers: usize) -> String {
    let layers = vec!["\"raw\""; layers].join(",");
    request("POST", "/machine/disks", &format!(r#"{{"id":"{id}","layers":[{layers}],"serial":"s"}}"#))
}

/// Sends bytes, and descriptors with them.
pub(super) fn send(client: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let sent = rustix::net::sendmsg(client, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty());
    assert_eq!(sent.unwrap(), bytes.len());
}

pub(super) fn answer(served: &mut Served, client: &mut UnixStream) -> String {
    served.settle();
    let mut heard = Vec::new();
    hear(client, &mut heard);
    String::from_utf8(heard).unwrap()
}

/// A file that nobody else has open, so that who holds it can be counted.
fn marked() -> (tempfile::NamedTempFile, OwnedFd) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let descriptor = file.reopen().unwrap().into();
    (file, descriptor)
}

/// How many descriptors of this process lead to a file.
fn held(file: &tempfile::NamedTempFile) -> usize {
    let wanted = fs::canonicalize(file.path()).unwrap();
    let leads_there = |entry: io::Result<fs::DirEntry>| {
        entry.ok().and_then(|entry| fs::read_link(entry.path()).ok()).is_some_and(|path| path == wanted)
    };
    fs::read_dir("/proc/self/fd").unwrap().map(leads_there).filter(|there| *there).count()
}

#[test]
fn a_request_gets_the_descriptors_that_came_with_it() {
    let mut served = Served::new();
    let (file, ours) = marked();
    let before = held(&file);
    let mut client = served.connect();
    send(&client, attach("a", 2).as_bytes(), &[ours.as_fd(), ours.as_fd()]);
    let heard = answer(&mut served, &mut client);
    assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
    assert_eq!(served.machine.asked, ["attach a with 2"]);
    assert_eq!(held(&file), before + 2);
    for kept in &served.machine.kept {
        let flags = rustix::io::fcntl_getfd(kept).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
    served.machine.kept.clear();
    assert_eq!(held(&file), before);
}

#[test]
fn one_after_the_other_each_gets_its_own() {
    let mut served = Served::new();
    let (file, ours) = marked();
    let before = held(&file);
    let mut client = served.connect();
    // All of it is there before the server looks; the last one is in three pieces, the second with the file.
    client.write_all(request("PUT", "/machine/pause", "").as_bytes()).unwrap();
    send(&client, attach("a", 1).as_bytes(), &[ours.as_fd()]);
    client.write_all(request("PUT", "/machine/resume", "").as_bytes()).unwrap();
    send(&client, attach("b", 2).as_bytes(), &[ours.as_fd(), ours.as_fd()]);
    let last = attach("c", 1);
    let (head, rest) = last.as_bytes().split_at(10);
    let (middle, tail) = rest.split_at(10);
    client.write_all(head).unwrap();
    send(&client, middle, &[ours.as_fd()]);
    client.write_all(tail).unwrap();
    let heard = answer(&mut served, &mut client);
    assert_eq!(served.machine.asked, ["attach a with 1", "attach b with 2", "attach c with 1"], "{heard}");
    assert_eq!(held(&file), before + 4);
}

#[test]
fn descriptors_that_nobody_claims_are_closed() {
    let (file, ours) = marked();
    let before = held(&file);
    let refused = [
        // Too few, too many, none wanted, no sense, no such thing, no HTTP.
        (attach("a", 2), "another number"),
        (attach("a", 0), "another number"),
        (request("PUT", "/machine/pause", ""), "takes no descriptors, and 1 came"),
        (request("GET", "/machine", ""), "takes no descriptors, and 1 came"),
        (request("DELETE", "/machine/disks/a", ""), "takes no descriptors, and 1 came"),
        (request("POST", "/machine/disks", "{"), "request body"),
        (request("POST", "/machine/nets", r#"{"id":"a"}"#), "missing field"),
        (request("POST", "/nowhere", ""), "no such resource"),
        ("nonsense\r\n\r\n".into(), "malformed"),
    ];
    for (request, text) in refused {
        let mut served = Served::new();
        let mut client = served.connect();
        send(&client, request.as_bytes(), &[ours.as_fd()]);
        let heard = answer(&mut served, &mut client);
        assert!(heard.starts_with("HTTP/1.1 4") && heard.contains(text), "{heard}");
        assert_eq!(held(&file), before, "{request}");
        assert!(!served.machine.paused);
    }
}

#[test]
fn a_client_that_leaves_takes_its_descriptors_along() {
    let (file, ours) = marked();
    let before = held(&file);
    let mut served = Served::new();
    let client = served.connect();
    send(&client, b"POST /machine/disks HTTP/1.1\r\n", &[ours.as_fd()]);
    served.settle();
    assert_eq!(held(&file), before + 1);
    drop(client);
    served.settle();
    assert_eq!(held(&file), before);
    assert_eq!(served.taken(), 0);
}

#[test]
fn one_who_follows_events_cannot_leave_descriptors_here() {
    let (file, ours) = marked();
    let before = held(&file);
    let mut served = Served::new();
    let mut client = served.connect();
    client.write_all(request("GET", "/events", "").as_bytes()).unwrap();
    answer(&mut served, &mut client);
    for _ in 0..10 {
        send(&client, b"x", &[ours.as_fd()]);
        served.settle();
    }
    assert_eq!(held(&file), before);
}

#[test]
fn there_is_an_end_to_how_many_come() {
    let (file, ours) = marked();
    let before = held(&file);
    let many = [ours.as_fd(); LAYERS_MAX + 1];
    // At once, and one by one with a request that never ends.
    let mut served = Served::new();
    let mut client = served.connect();
    send(&client, attach("a", LAYERS_MAX + 1).as_bytes(), &many);
    let heard = answer(&mut served, &mut client);
    assert!(heard.contains("at most 32 descriptors"), "{heard}");
    let mut client = served.connect();
    client.write_all(b"POST /machine/disks HTTP/1.1\r\nX: ").unwrap();
    for _ in 0..LAYERS_MAX {
        send(&client, b"x", &[ours.as_fd()]);
        served.settle();
    }
    assert_eq!(held(&file), before + LAYERS_MAX);
    send(&client, b"x", &[ours.as_fd()]);
    let heard = answer(&mut served, &mut client);
    assert!(heard.contains("at most 32 descriptors"), "{heard}");
    assert_eq!(held(&file), before);
    // As many as there may be are taken.
    let mut client = served.connect();
    send(&client, attach("a", LAYERS_MAX).as_bytes(), &many[1..]);
    let heard = answer(&mut served, &mut client);
    assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
}

#[test]
fn devices_are_listed_resized_and_detached() {
    let mut served = Served::new();
    for (path, text) in [
        ("/machine/disks", r#"{"disks":[{"id":"block0","#),
        ("/machine/disks/vol-0.1_a", r#"{"id":"vol-0.1_a","#),
        ("/machine/nets", r#"{"nets":[{"id":"net0","#),
        ("/machine/nets/eni-1", r#"{"id":"eni-1","#),
        ("/machine/balloon", r#"{"target_bytes":0,"#),
    ] {
        let heard = served.talk(request("GET", path, "").as_bytes());
        assert!(heard.contains(text), "{heard}");
    }
    for (method, path, body, status) in [
        ("PUT", "/machine/disks/a/size", r#"{"bytes":1024}"#, 200),
        ("PUT", "/machine/disks/a/size", r#"{"bytes":null}"#, 200),
        ("PUT", "/machine/disks/a/size", r#"{"bytes":-1}"#, 400),
        ("PUT", "/machine/disks/a/size", r#"{"bytes":1,"more":2}"#, 400),
        ("PUT", "/machine/disks/a/limit", r#"{"operations":{"per_second":100,"burst":10}}"#, 200),
        ("PUT", "/machine/disks/a/limit", r#"{"operations":{"per_second":0,"burst":10}}"#, 400),
        ("PUT", "/machine/disks/a/limit", "{}", 200),
        ("PUT", "/machine/nets/b/limits", r#"{"receive":{"bandwidth":{"per_second":1,"burst":1}}}"#, 200),
        ("PUT", "/machine/nets/b/limits", r#"{"recieve":{}}"#, 400),
        ("DELETE", "/machine/disks/a", "", 202),
        ("DELETE", "/machine/disks/a?force=true", "", 204),
        ("DELETE", "/machine/nets/b?force=false", "", 202),
        ("DELETE", "/machine/nets/b?force=true", "", 204),
        ("DELETE", "/machine/nets/b?force=", "", 400),
        ("DELETE", "/machine/nets/", "", 404),
        ("DELETE", "/machine/nets/b", "{}", 400),
        ("PUT", "/machine/balloon", r#"{"target_bytes":4096}"#, 200),
    ] {
        let heard = served.talk(request(method, path, body).as_bytes());
        assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path} {body}: {heard}");
    }
    assert_eq!(
        served.machine.asked,
        [
            "resize a Some(1024)",
            "resize a None",
            "limit a",
            "limit a",
            "limit b",
            "detach a false",
            "detach a true",
            "detach b false",
            "detach b true"
        ]
    );
}

#[test]
fn the_contract_that_is_checked_in() {
    let contract = openapi::openapi();
    let mut described = openapi::operations_of(&contract);
    let mut served: Vec<_> = routes::all().map(|(method, path)| (method, path.to_owned())).collect();
    described.sort();
    served.sort();
    assert_eq!(described, served);

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/machine-openapi.json");
    let now = format!("{}\n", contract.to_pretty_json().unwrap());
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(now == checked_in, "docs/machine-openapi.json is not the contract: run this test with UPDATE=1");
}
