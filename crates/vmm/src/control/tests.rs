use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    process::{Command, Stdio},
    time::Duration,
};

use ec2vmm_vmm_api::control::{Machine, PowerAction, PowerRequest};
use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::{connection::Connection, fake::Fake, http::REQUEST_BYTES_MAX, *};

/// A server on a socket in a folder of its own.
pub(super) struct Served {
    pub(super) server: ControlServer,
    pub(super) machine: Fake,
    folder: tempfile::TempDir,
}

impl Served {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("control")).unwrap();
        Self { server: ControlServer::new(listener).unwrap(), machine: Fake::default(), folder }
    }

    pub(super) fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(self.folder.path().join("control")).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// Runs the server until it has nothing more to do.
    pub(super) fn settle(&mut self) {
        while is_ready(&self.server, 0) {
            self.server.ready(&mut self.machine);
        }
    }

    pub(super) fn taken(&self) -> usize {
        self.server.connections.iter().flatten().count()
    }

    /// Says all of it and hears all that is answered.
    pub(super) fn talk(&mut self, request: &[u8]) -> String {
        let mut client = self.connect();
        let mut rest = request;
        let mut heard = Vec::new();
        loop {
            let said = match client.write(rest) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => rest.len(),
                Err(error) => panic!("{error}"),
            };
            rest = &rest[said..];
            self.settle();
            hear(&mut client, &mut heard);
            if rest.is_empty() {
                return String::from_utf8(heard).unwrap();
            }
        }
    }
}

/// Whether the one descriptor says so, as an event loop would see it.
fn is_ready(server: &ControlServer, timeout_ms: i32) -> bool {
    let outer = Epoll::new().unwrap();
    outer.ctl(ControlOperation::Add, server.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    outer.wait(timeout_ms, &mut [EpollEvent::default()]).unwrap() == 1
}

/// Reads what there is; whether that was the end.
pub(super) fn hear(client: &mut UnixStream, heard: &mut Vec<u8>) -> bool {
    match client.read_to_end(heard) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => true,
        Err(error) => panic!("{error}"),
    }
}

fn check(request: &str, expected: &Expect) {
    let answer = Served::new().talk(request.as_bytes());
    expected.assert_eq(&answer.replace('\r', ""));
}

/// The status line and the body of one answer.
fn check_problem(request: &str, expected: &Expect) {
    let answer = Served::new().talk(request.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let allow = head.lines().find(|line| line.starts_with("Allow")).map(|line| line.to_owned() + "\n");
    let status = head.lines().next().unwrap();
    expected.assert_eq(&format!("{status}\n{}{body}", allow.unwrap_or_default()));
}

fn put(content_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "PUT /machine/power HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

#[test]
fn the_machine_is_told() {
    check(
        "GET /machine HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 200 OK
        Content-Type: application/json
        Content-Length: 252

        {"identity":{"uuid":"00000000-0000-0000-0000-000000000000","manufacturer":"ec2vmm","product":"t3.micro","asset_tag":null},"pid":7,"cpus":2,"memory_mib":1024,"state":"running","reboots":0,"uptime_ms":5,"booted":{"kernel":"","initrd":null,"cmdline":""}}
    "#]],
    );
}

#[test]
fn counters_are_told() {
    let mut served = Served::new();
    served.machine.counters = 2;
    let answer = served.talk(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    expect![[r#"
        {"devices":{"vcpu":{"counter0":1,"counter1":1}}}
    "#]]
    .assert_eq(answer.split_once("\r\n\r\n").unwrap().1);
}

#[test]
fn head_is_get_without_the_content() {
    let get = Served::new().talk(b"GET /machine HTTP/1.1\r\n\r\n");
    let head = Served::new().talk(b"HEAD /machine HTTP/1.1\r\n\r\n");
    assert_eq!(head, get.split_once("\r\n\r\n").unwrap().0.to_owned() + "\r\n\r\n");
}

#[test]
fn power_actions_reach_the_machine() {
    let mut served = Served::new();
    for action in ["power_button", "reset"] {
        let body = format!(r#"{{"action":"{action}"}}"#);
        let answer = served.talk(put("application/json; charset=utf-8", &body).as_bytes());
        assert_eq!(answer, "HTTP/1.1 204 No Content\r\n\r\n");
    }
    for body in [r#"{"action":"reboot"}"#, r#"{"action":"reboot","grace_ms":1500}"#] {
        let answer = served.talk(put("application/json", body).as_bytes());
        assert_eq!(answer, "HTTP/1.1 204 No Content\r\n\r\n");
    }
    let done = [
        PowerAction::PowerButton.into(),
        PowerAction::Reset.into(),
        PowerAction::Reboot.into(),
        PowerRequest::reboot(1500),
    ];
    assert_eq!(served.machine.done, done);
    check_problem(
        &put("application/json", r#"{"action":"reset","grace_ms":5}"#),
        &expect![[r#"
        HTTP/1.1 400 Bad Request
        {"status":400,"detail":"grace_ms: only the action `reboot` waits for the guest","hint":null}
    "#]],
    );
}

#[test]
fn a_machine_is_paused_and_resumed() {
    let mut served = Served::new();
    for (verb, paused) in [("pause", true), ("pause", true), ("resume", false), ("resume", false)] {
        let answer = served.talk(format!("PUT /machine/{verb} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert_eq!(answer, "HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(served.machine.paused, paused);
    }
    check_problem(
        "PUT /machine/pause HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        &expect![[r#"
        HTTP/1.1 400 Bad Request
        {"status":400,"detail":"PUT /machine/pause takes no request body","hint":null}
    "#]],
    );
}

#[test]
fn what_the_machine_refuses_is_told() {
    check_problem(
        &put("application/json", r#"{"action":"power_off"}"#),
        &expect![[r#"
        HTTP/1.1 503 Service Unavailable
        {"status":503,"detail":"not now","hint":null}
    "#]],
    );
}

#[test]
fn unknown_resources_and_methods_are_refused() {
    check_problem(
        "GET /nowhere HTTP/1.1\r\n\r\n",
        &expect![[r#"
            HTTP/1.1 404 Not Found
            {"status":404,"detail":"no such resource: /nowhere","hint":"there is /machine, /events, /metrics, /machine/power, /machine/pause, /machine/resume, /machine/disks, /machine/disks/{id}, /machine/disks/{id}/size, /machine/disks/{id}/limit, /machine/nets, /machine/nets/{id}, /machine/nets/{id}/limits, /machine/balloon, /machine/snapshot, /machine/working-set"}
        "#]],
    );
    check_problem(
        "GET /machine?x=1 HTTP/1.1\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 400 Bad Request
        {"status":400,"detail":"?x=1: /machine takes no query","hint":null}
    "#]],
    );
    check_problem(
        "DELETE /machine/disks/a?force=maybe HTTP/1.1\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 400 Bad Request
        {"status":400,"detail":"?force=maybe: force=true or force=false is all that can be said","hint":null}
    "#]],
    );
    check_problem(
        "GET /machine/disks/a/b HTTP/1.1\r\n\r\n",
        &expect![[r#"
            HTTP/1.1 404 Not Found
            {"status":404,"detail":"no such resource: /machine/disks/a/b","hint":"there is /machine, /events, /metrics, /machine/power, /machine/pause, /machine/resume, /machine/disks, /machine/disks/{id}, /machine/disks/{id}/size, /machine/disks/{id}/limit, /machine/nets, /machine/nets/{id}, /machine/nets/{id}/limits, /machine/balloon, /machine/snapshot, /machine/working-set"}
        "#]],
    );
    check_problem(
        "PUT /machine/disks/a HTTP/1.1\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 405 Method Not Allowed
        Allow: GET, HEAD, DELETE
        {"status":405,"detail":"/machine/disks/a knows no PUT","hint":null}
    "#]],
    );
    check_problem(
        "DELETE /machine HTTP/1.1\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 405 Method Not Allowed
        Allow: GET, HEAD
        {"status":405,"detail":"/machine knows no DELETE","hint":null}
    "#]],
    );
    check_problem(
        "GET /machine/power HTTP/1.1\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 405 Method Not Allowed
        Allow: PUT
        {"status":405,"detail":"/machine/power knows no GET","hint":null}
    "#]],
    );
}

#[test]
fn wrong_content_is_refused() {
    check_problem(
        &put("text/plain", "{}"),
        &expect![[r#"
        HTTP/1.1 415 Unsupported Media Type
        {"status":415,"detail":"not JSON: text/plain","hint":"send Content-Type: application/json (curl --json does)"}
    "#]],
    );
    check_problem(
        &put("application/json", "{"),
        &expect![[r#"
        HTTP/1.1 400 Bad Request
        {"status":400,"detail":"request body: EOF while parsing an object at line 1 column 1","hint":null}
    "#]],
    );
    check_problem(
        &put("application/json", r#"{"action":"explode"}"#),
        &expect![[r#"
        HTTP/1.1 400 Bad Request
        {"status":400,"detail":"request body: unknown variant `explode`, expected one of `power_button`, `reboot`, `reset`, `power_off` at line 1 column 19","hint":null}
    "#]],
    );
    check_problem(
        &put("application/json", r#"{"action":"reset","when":"now"}"#),
        &expect![[r#"
        HTTP/1.1 400 Bad Request
        {"status":400,"detail":"request body: unknown field `when`, expected `action` or `grace_ms` at line 1 column 24","hint":null}
    "#]],
    );
    check_problem(
        "GET /machine HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        &expect![[r#"
        HTTP/1.1 400 Bad Request
        {"status":400,"detail":"GET /machine takes no request body","hint":null}
    "#]],
    );
}

#[test]
fn what_is_no_request_is_refused() {
    check_problem(
        "hello\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 400 Bad Request
        {"status":400,"detail":"malformed request: invalid token","hint":null}
    "#]],
    );
    check_problem(
        "GET /machine HTTP/2.0\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 505 HTTP Version Not Supported
        {"status":505,"detail":"not HTTP/1.1 or HTTP/1.0","hint":null}
    "#]],
    );
    check_problem(
        "PUT /machine/power HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 400 Bad Request
        {"status":400,"detail":"Content-Length: not a number","hint":null}
    "#]],
    );
    check_problem(
        "PUT /machine/power HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        &expect![[r#"
            HTTP/1.1 400 Bad Request
            {"status":400,"detail":"Content-Length: given twice, differently","hint":null}
        "#]],
    );
    check_problem(
        "PUT /machine/power HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 411 Length Required
        {"status":411,"detail":"a chunked request body","hint":"send the body in one piece, with Content-Length"}
    "#]],
    );
    check_problem(
        "PUT /machine/power HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 501 Not Implemented
        {"status":501,"detail":"Transfer-Encoding: unknown","hint":null}
    "#]],
    );
    check_problem(
        "PUT /machine/power HTTP/1.1\r\nExpect: miracles\r\n\r\n",
        &expect![[r#"
        HTTP/1.1 417 Expectation Failed
        {"status":417,"detail":"Expect: 100-continue is all that can be expected","hint":null}
    "#]],
    );
}

#[test]
fn what_is_too_much_is_refused() {
    let large = usize::MAX.to_string() + "0";
    check_problem(
        &format!("PUT /machine/power HTTP/1.1\r\nContent-Length: {large}\r\n\r\n"),
        &expect![[r#"
        HTTP/1.1 413 Content Too Large
        {"status":413,"detail":"a request's body is longer than 65536 bytes","hint":null}
    "#]],
    );
    check_problem(
        &put("application/json", &" ".repeat(64 * 1024 + 1)),
        &expect![[r#"
        HTTP/1.1 413 Content Too Large
        {"status":413,"detail":"a request's body is longer than 65536 bytes","hint":null}
    "#]],
    );
    check_problem(
        &format!("GET /machine HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(16 * 1024)),
        &expect![[r#"
        HTTP/1.1 431 Request Header Fields Too Large
        {"status":431,"detail":"a request's head is longer than 16384 bytes","hint":null}
    "#]],
    );
    check_problem(
        &format!("GET /machine HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(65)),
        &expect![[r#"
        HTTP/1.1 431 Request Header Fields Too Large
        {"status":431,"detail":"more than 64 header fields","hint":null}
    "#]],
    );
    check_problem(
        &"x".repeat(1024 * 1024),
        &expect![[r#"
        HTTP/1.1 431 Request Header Fields Too Large
        {"status":431,"detail":"a request's head is longer than 16384 bytes","hint":null}
    "#]],
    );
}

#[test]
fn a_body_at_the_limit_is_taken() {
    let action = r#"{"action":"reset"}"#;
    let body = " ".repeat(64 * 1024 - action.len()) + action;
    assert!(Served::new().talk(put("application/json", &body).as_bytes()).starts_with("HTTP/1.1 204"));
}

#[test]
fn requests_in_a_row_are_answered_in_order() {
    let requests =
        "GET /metrics HTTP/1.1\r\n\r\n".repeat(40) + "HEAD /machine HTTP/1.1\r\nConnection: close\r\n\r\n";
    let answers = Served::new().talk((requests + "GET /metrics HTTP/1.1\r\n\r\n").as_bytes());
    assert_eq!(answers.matches("{\"devices\"").count(), 40);
    assert!(answers.ends_with("Connection: close\r\n\r\n"), "nothing is answered after the last");
}

#[test]
fn http_1_0_closes_unless_asked_not_to() {
    let mut served = Served::new();
    assert!(served.talk(b"GET /machine HTTP/1.0\r\n\r\n").contains("Connection: close\r\n"));
    let answer = served.talk(b"GET /machine HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
    assert!(answer.contains("Connection: keep-alive\r\n"));
}

#[test]
fn a_client_that_waits_is_told_to_go_on_once() {
    let mut served = Served::new();
    let mut client = served.connect();
    let mut heard = Vec::new();
    let body = br#"{"action":"reset"}"#;
    let head = format!(
        "PUT /machine/power HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    for part in [head.as_bytes(), &body[..3], &body[3..]] {
        client.write_all(part).unwrap();
        served.settle();
        assert!(!hear(&mut client, &mut heard));
    }
    assert_eq!(
        String::from_utf8(heard).unwrap(),
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
    );
}

#[test]
fn a_client_that_has_said_all_is_still_answered() {
    let mut served = Served::new();
    let mut client = served.connect();
    client.write_all(b"GET /machine HTTP/1.1\r\n\r\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    served.settle();
    let mut heard = Vec::new();
    assert!(hear(&mut client, &mut heard), "and then the connection is closed");
    assert!(heard.starts_with(b"HTTP/1.1 200 OK"));
    assert_eq!(served.taken(), 0);
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let mut served = Served::new();
    served.machine.counters = 1000;
    let mut client = served.connect();
    let request = b"GET /metrics HTTP/1.1\r\n\r\n";
    let mut asked = 0;
    // Until its requests pile up in the socket, because the server takes no more.
    while matches!(client.write(request), Ok(count) if count == request.len()) {
        asked += 1;
        served.settle();
    }
    let connection = served.server.connections.iter().flatten().next().unwrap();
    assert!(connection.held_bytes() <= REQUEST_BYTES_MAX + 64 * 1024, "{}", connection.held_bytes());
    let mut heard = Vec::new();
    while !hear(&mut client, &mut heard) && is_ready(&served.server, 0) {
        served.settle();
    }
    assert_eq!(String::from_utf8(heard).unwrap().matches("HTTP/1.1 200 OK").count(), asked);
}

#[test]
fn a_client_that_is_gone_leaves_nothing_behind() {
    let mut served = Served::new();
    for said in ["", "GET", "GET /machine HTTP/1.1\r\n\r\n", "nonsense\r\n\r\n"] {
        let mut client = served.connect();
        client.write_all(said.as_bytes()).unwrap();
        served.settle();
        drop(client);
        served.settle();
        assert_eq!(served.taken(), 0, "{said:?}");
    }
}

#[test]
fn the_longest_idle_makes_room() {
    let mut served = Served::new();
    let mut clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| served.connect()).collect();
    for client in &mut clients {
        client.write_all(b"GET /machine HTTP/1.1\r\n\r\n").unwrap();
        served.settle();
    }
    assert!(served.talk(b"GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
    let mut ends = clients.iter_mut().map(|client| hear(client, &mut Vec::new()));
    assert!(ends.next().unwrap());
    assert!(ends.all(|end| !end));
}

#[test]
fn those_who_say_nothing_make_room_in_time() {
    let mut served = Served::new();
    served.server.stall = Duration::from_millis(50);
    let silent: Vec<_> = (0..CONNECTIONS_MAX).map(|_| served.connect()).collect();
    served.settle();
    let mut client = served.connect();
    client.write_all(b"GET /machine HTTP/1.1\r\n\r\n").unwrap();
    let mut heard = Vec::new();
    while !hear(&mut client, &mut heard) && heard.is_empty() {
        assert!(is_ready(&served.server, 10_000), "the timer runs while somebody waits");
        served.server.ready(&mut served.machine);
    }
    assert!(heard.starts_with(b"HTTP/1.1 200"));
    drop(silent);
    served.settle();
    assert!(!served.server.waiting);
    assert_eq!(served.taken(), 1);
}

#[test]
fn nobody_waits_once_there_is_room() {
    let mut served = Served::new();
    let mut silent: Vec<_> = (0..CONNECTIONS_MAX).map(|_| served.connect()).collect();
    served.settle();
    let mut client = served.connect();
    client.write_all(b"GET /machine HTTP/1.1\r\n\r\n").unwrap();
    served.settle();
    let mut heard = Vec::new();
    assert!(!hear(&mut client, &mut heard) && heard.is_empty());
    drop(silent.pop());
    served.settle();
    assert!(!hear(&mut client, &mut heard));
    assert!(heard.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn curl_understands_it() {
    let Served { mut server, mut machine, folder } = Served::new();
    let socket = folder.path().join("control");
    let mut curl = Command::new("curl")
        .args(["--silent", "--show-error", "--fail-with-body", "--unix-socket"])
        .arg(socket)
        .args(["http://localhost/machine", "--next", "--silent", "--show-error", "--unix-socket"])
        .arg(folder.path().join("control"))
        .args(["--request", "PUT", "--header", "Content-Type: application/json", "--data"])
        .args([
            r#"{"action":"power_button"}"#,
            "--write-out",
            "%{http_code}",
            "http://localhost/machine/power",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs curl: apt-get install curl");
    while curl.try_wait().unwrap().is_none() {
        is_ready(&server, 10);
        server.ready(&mut machine);
    }
    let output = curl.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let (json, code) = text.split_once('\n').unwrap();
    let told: Machine = serde_json::from_str(json).unwrap();
    assert_eq!((told, code), (machine.machine(), "204"));
    assert_eq!(machine.done, [PowerAction::PowerButton.into()]);
}

/// Pieces that requests are made of, and some that none is.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => Just(b"GET /machine HTTP/1.1\r\n\r\n".to_vec()),
        2 => Just(put("application/json", r#"{"action":"reset"}"#).into_bytes()),
        1 => Just(b"PUT /machine/power HTTP/1.1\r\n".to_vec()),
        1 => Just(b"Expect: 100-continue\r\n".to_vec()),
        1 => (0u32..100_000).prop_map(|length| format!("Content-Length: {length}\r\n").into_bytes()),
        1 => Just(b"\r\n".to_vec()),
        1 => Just(b"Connection: close\r\n\r\n".to_vec()),
        2 => proptest::collection::vec(any::<u8>(), 0..200),
        1 => (any::<u8>(), 0usize..100_000).prop_map(|(byte, count)| vec![byte; count]),
    ]
}

proptest! {
    /// Whatever comes in, in whatever parts: no panic, no growth, no work that does not end, and
    /// whoever hangs up is forgotten.
    #[test]
    fn no_input_harms(pieces in proptest::collection::vec(piece(), 1..12)) {
        let (client, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut client = client;
        let mut connection = Connection::new(stream);
        let mut machine = Fake::default();
        let mut heard = Vec::new();
        let mut fate = Fate::Keep;
        for piece in pieces {
            let mut rest = piece.as_slice();
            while let (Fate::Keep, Ok(count)) = (fate, client.write(rest)) {
                rest = &rest[count..];
                fate = connection.turn(true, &mut machine);
                hear(&mut client, &mut heard);
                prop_assert!(connection.held_bytes() <= REQUEST_BYTES_MAX + 64 * 1024);
                if rest.is_empty() {
                    break;
                }
            }
        }
        client.shutdown(Shutdown::Both).unwrap();
        for _ in 0..100 {
            if fate == Fate::Keep {
                fate = connection.turn(true, &mut machine);
            }
        }
        prop_assert_eq!(fate, Fate::Close);
    }

    /// How a client cuts its requests is all the same.
    #[test]
    fn cuts_make_no_difference(cuts in proptest::collection::vec(0usize..300, 0..8)) {
        let requests = [
            "GET /machine HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            put("application/json", r#"{"action":"reset"}"#),
            "HEAD /metrics HTTP/1.1\r\n\r\n".to_owned(),
            "PUT /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
        ]
        .concat();
        let whole = Served::new().talk(requests.as_bytes());
        let mut served = Served::new();
        let mut client = served.connect();
        let mut cuts = cuts;
        cuts.sort_unstable();
        let (mut from, mut heard) = (0, Vec::new());
        for to in cuts.into_iter().map(|cut| cut.min(requests.len())).chain([requests.len()]) {
            client.write_all(&requests.as_bytes()[from..to]).unwrap();
            from = to;
            served.settle();
            hear(&mut client, &mut heard);
        }
        prop_assert_eq!(String::from_utf8(heard).unwrap(), whole);
        prop_assert_eq!(served.machine.done, [PowerAction::Reset.into()]);
    }
}

const FOLLOW: &[u8] = b"GET /events HTTP/1.1\r\nHost: m\r\n\r\n";

#[test]
fn a_stream_begins_with_what_was_and_goes_on() {
    let mut served = Served::new();
    let mut client = served.connect();
    client.write_all(FOLLOW).unwrap();
    served.settle();
    served.server.publish(b"{\"more\":1}\n");
    // Saying no more is not leaving; and what it says is not heard.
    client.write_all(FOLLOW).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    served.settle();
    served.server.publish(b"{\"more\":2}\n");
    let mut heard = Vec::new();
    hear(&mut client, &mut heard);
    expect![[r#"
        HTTP/1.1 200 OK
        Content-Type: application/x-ndjson
        Connection: close

        {"event":"running","us":5}
        {"more":1}
        {"more":2}
    "#]]
    .assert_eq(&String::from_utf8(heard).unwrap().replace('\r', ""));
    drop(client);
    served.settle();
    assert_eq!(served.taken(), 0);
    let head = served.talk(b"HEAD /events HTTP/1.1\r\nHost: m\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("close\r\n\r\n"), "{head}");
}

#[test]
fn one_who_follows_and_does_not_read_is_dropped() {
    let mut served = Served::new();
    let mut client = served.connect();
    client.write_all(FOLLOW).unwrap();
    served.settle();
    let line = vec![b'x'; 1000];
    let mut published = 0;
    while served.taken() == 1 {
        served.server.publish(&line);
        published += line.len();
        let held = served.server.connections.iter().flatten().map(Connection::held_bytes).sum::<usize>();
        assert!(held < 3 * 64 * 1024, "{held}");
        assert!(published < 64 << 20);
    }
    // All but the place that it has lost goes on.
    assert!(served.talk(b"GET /machine HTTP/1.1\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 200"));
}

#[test]
fn those_who_follow_leave_room_for_others() {
    let mut served = Served::new();
    let followers: Vec<_> = (0..STREAMS_MAX)
        .map(|_| {
            let mut client = served.connect();
            client.write_all(FOLLOW).unwrap();
            served.settle();
            client
        })
        .collect();
    let refused = served.talk(FOLLOW);
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    // A crowd takes no place from those who follow.
    let crowd: Vec<_> = (0..20).map(|_| served.connect()).collect();
    served.server.stall = Duration::ZERO;
    served.settle();
    let streaming = served.server.connections.iter().flatten().filter(|one| one.is_streaming()).count();
    assert_eq!(streaming, STREAMS_MAX);
    assert!(served.talk(b"GET /machine HTTP/1.1\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 200"));
    drop((followers, crowd));
}
