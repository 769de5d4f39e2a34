//! A snapshot is answered when it is done; until then others are served.

use std::{
    io::Write,
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};

use ec2vmm_vmm_api::control::SnapshotTaken;

use super::{
    CONNECTIONS_MAX,
    device_tests::{answer, request, send},
    problem,
    tests::Served,
};

const GET: &[u8] = b"GET /machine HTTP/1.1\r\nHost: m\r\n\r\n";

/// A server, and one who has asked for a snapshot, and then for more.
fn begin(head: &str, more: &[u8]) -> (Served, UnixStream) {
    let mut served = Served::new();
    served.machine.can_be_written = true;
    let client = served.connect();
    let file = tempfile::tempfile().unwrap();
    let asked = request("POST", "/machine/snapshot", "{}").replace("Host: m\r\n", head);
    send(&client, asked.as_bytes(), &[file.as_fd(), file.as_fd()]);
    (&client).write_all(more).unwrap();
    served.settle();
    (served, client)
}

fn taken() -> SnapshotTaken {
    SnapshotTaken { id: uuid::Uuid::nil(), parent: None, memory_bytes: 4096, us: 7 }
}

#[test]
fn it_is_answered_when_it_is_done_and_then_what_was_asked_after_it() {
    let (mut served, mut client) = begin("Host: m\r\n", GET);
    assert_eq!(answer(&mut served, &mut client), "");
    assert!(served.talk(GET).starts_with("HTTP/1.1 200"), "others are answered");
    client.write_all(GET).unwrap();
    assert_eq!(answer(&mut served, &mut client), "");
    served.server.tell_snapshot(Ok(taken()));
    let heard = answer(&mut served, &mut client);
    let answers: Vec<_> = heard.split("HTTP/1.1 200 OK").skip(1).collect();
    let [snapshot, one, two] = answers.as_slice() else { panic!("{heard}") };
    assert!(snapshot.contains(r#""memory_bytes":4096"#) && one.contains("t3.micro") && one == two, "{heard}");
    // Nobody waits for it any more.
    served.server.tell_snapshot(Ok(taken()));
    assert_eq!(answer(&mut served, &mut client), "");
}

#[test]
fn the_connection_ends_after_it_if_that_was_asked() {
    let (mut served, mut client) = begin("Connection: close\r\n", b"");
    served.server.tell_snapshot(Err(problem(409, "given up".into())));
    let heard = answer(&mut served, &mut client);
    assert!(heard.starts_with("HTTP/1.1 409") && heard.contains("Connection: close"), "{heard}");
    drop(client);
    served.settle();
    assert_eq!(served.taken(), 0);
}

#[test]
fn what_cannot_begin_is_answered_at_once() {
    let mut served = Served::new();
    let mut client = served.connect();
    let file = tempfile::tempfile().unwrap();
    let asked = request("POST", "/machine/snapshot", "{}");
    send(&client, asked.as_bytes(), &[file.as_fd(), file.as_fd()]);
    assert!(answer(&mut served, &mut client).starts_with("HTTP/1.1 409"));
}

#[test]
fn one_that_goes_away_leaves_its_place_and_no_trouble() {
    let (mut served, client) = begin("Host: m\r\n", b"");
    assert_eq!(served.taken(), 1);
    drop(client);
    served.settle();
    assert_eq!(served.taken(), 0);
    served.server.tell_snapshot(Ok(taken()));
    assert!(served.talk(GET).starts_with("HTTP/1.1 200"));
}

#[test]
fn one_that_says_no_more_still_listens() {
    let (mut served, mut client) = begin("Host: m\r\n", b"");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    served.settle();
    assert_eq!(served.taken(), 1);
    served.server.tell_snapshot(Ok(taken()));
    assert!(answer(&mut served, &mut client).starts_with("HTTP/1.1 200"));
    assert_eq!(served.taken(), 0);
}

#[test]
fn nobody_takes_the_place_of_the_one_who_waits() {
    let (mut served, mut client) = begin("Host: m\r\n", b"");
    served.server.stall = Duration::ZERO;
    let crowd: Vec<_> = (0..2 * CONNECTIONS_MAX)
        .map(|_| {
            let mut one = served.connect();
            one.write_all(b"GET /machine").unwrap();
            served.settle();
            one
        })
        .collect();
    served.server.tell_snapshot(Ok(taken()));
    assert!(answer(&mut served, &mut client).starts_with("HTTP/1.1 200"));
    drop(crowd);
}
