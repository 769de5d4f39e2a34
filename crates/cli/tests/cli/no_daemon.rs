//! No daemon, or one that does not behave.

use expect_test::expect;
use serde_json::json;

use crate::{
    daemon::{Reply, problem},
    host::Host,
};

/// Every verb that needs one.
const VERBS: [&str; 22] = [
    "launch debian-12",
    "ls",
    "show web",
    "start i-0123456789abcdef0",
    "stop i-0123456789abcdef0",
    "reboot i-0123456789abcdef0",
    "terminate i-0123456789abcdef0",
    "modify web --type t3.small",
    "wait web",
    "console web",
    "console i-0123456789abcdef0 --attach",
    "events",
    "events --follow",
    "tag web a=b",
    "untag web a",
    "cost",
    "top --once",
    "key ls",
    "key rm a",
    "image ls",
    "status",
    "backup file",
];

#[test]
fn nobody_listens() {
    for words in VERBS {
        let host = Host::new("");
        host.check(
            &mut host.command(words),
            &expect![[r#"
                status 40
                -- stderr
                ec2vmm: no daemon answers on DIR/daemon.sock: No such file or directory (os error 2)
                hint: start it with `systemctl start ec2vmmd`, or try one out with `ec2vmmd --host simulated`; `--socket` or EC2VMM_SOCKET names another socket
            "#]],
        );
        assert!(!host.path("file").exists() && !host.path("file.part").exists());
    }
    let host = Host::new("");
    drop(std::os::unix::net::UnixListener::bind(host.path("daemon.sock")).unwrap());
    let output = host.command("status").output().unwrap();
    assert_eq!(output.status.code(), Some(40));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Connection refused"));
}

#[test]
fn another_socket_may_be_named() {
    let host = Host::new("");
    for words in ["ls --socket other.sock", "ls --socket disk.raw"] {
        let output = host.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(40), "{words}");
    }
    let daemon = host.daemon();
    daemon.on_json("GET /v1/key-pairs", json!({ "key_pairs": [] }));
    let mut command = host.command("key ls --socket daemon.sock");
    command.env("EC2VMM_SOCKET", "/nowhere");
    host.check(
        &mut command,
        &expect![[r#"
            status 0
            -- stdout
            NAME  TYPE  ID  CREATED  FINGERPRINT
        "#]],
    );
}

#[test]
fn what_the_daemon_refuses() {
    for (status, code, exit) in [
        (400, "InvalidParameterValue", 41),
        (400, "InvalidInstanceID.NotFound", 42),
        (404, "InvalidKeyPair.NotFound", 42),
        (409, "IncorrectInstanceState", 43),
        (409, "OperationNotPermitted", 43),
        (409, "IdempotentParameterMismatch", 43),
        (409, "InvalidKeyPair.Duplicate", 43),
        (409, "InsufficientInstanceCapacity", 44),
        (400, "InstanceLimitExceeded", 44),
        (500, "InternalError", 45),
        (503, "Unavailable", 45),
    ] {
        let host = Host::new("");
        let daemon = host.daemon();
        daemon.on("GET /v1/status", [problem(status, code, "It is so\u{1b}[2J.")]);
        let output = host.command("status").output().unwrap();
        assert_eq!(output.status.code(), Some(exit), "{code}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().next().unwrap(), format!("ec2vmm: It is so\\u{{1b}}[2J. ({code})"));
    }
}

#[test]
fn hints_of_the_daemon_are_passed_on() {
    let host = Host::new("");
    let daemon = host.daemon();
    let Reply::Json(status, mut body) = problem(409, "OperationNotPermitted", "It is protected.") else {
        unreachable!()
    };
    body["hint"] = json!("take the protection off");
    daemon.on("POST /v1/instances/i-0123456789abcdef0/terminate", [Reply::Json(status, body)]);
    host.check(
        &mut host.command("terminate i-0123456789abcdef0"),
        &expect![[r#"
            status 43
            -- stderr
            ec2vmm: It is protected. (OperationNotPermitted)
            hint: take the protection off
        "#]],
    );
}

#[test]
fn answers_that_make_no_sense() {
    let host = Host::new("");
    let daemon = host.daemon();
    for (reply, exit, says) in [
        (Reply::Text(500, "oops\u{1b}"), 45, r#"status 500 Internal Server Error, "oops\u{1b}""#),
        (Reply::Text(200, "{"), 45, "/v1/status: EOF while parsing"),
        (Reply::Json(200, json!({ "version": 1 })), 45, "invalid type: integer `1`, expected a string"),
        (Reply::Text(302, ""), 45, "status 302 Found"),
        (Reply::Half, 46, "the daemon went away before it had answered in full"),
        (Reply::Gone, 46, "the daemon went away before it had answered in full"),
    ] {
        daemon.on("GET /v1/status", [reply]);
        let output = host.command("status").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit), "{said}");
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn an_answer_that_does_not_end_is_not_kept() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("GET /v1/status", [Reply::Bytes(vec![b' '; (64 << 20) + 1])]);
    host.check(
        &mut host.command("status"),
        &expect![[r#"
            status 45
            -- stderr
            ec2vmm: the daemon's answer is longer than 67108864 bytes
        "#]],
    );
}
