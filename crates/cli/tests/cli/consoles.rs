//! Serial consoles of instances: shown, followed, and this terminal attached to one.

use std::{
    io::{Read, Write},
    process::Stdio,
};

use expect_test::expect;
use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, Reply, id, instance},
    host::{Host, show_status},
    terminal::Terminal,
};

#[test]
fn what_was_shown() {
    let host = Host::new("");
    let _daemon = daemon(&host, "");
    let output = host.command(&format!("console {}", id(1))).output().unwrap();
    assert_eq!(output.stdout, b"booted\r\n\xff\r\nlogin: ");
    let output = host.command(&format!("console {} --json", id(1))).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["output"], "Ym9vdGVkDQr/DQpsb2dpbjog");
}

#[test]
fn following() {
    let host = Host::new("");
    let daemon = daemon(&host, "ogin: root\r\n");
    daemon.on_json(&format!("GET /v1/instances/{}", id(1)), instance(1, "", "stopped"));
    let mut child = host
        .command(&format!("console {} --follow", id(1)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"root\r\n") {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        seen.extend(byte);
    }
    // What was shown before and came again is there once.
    assert_eq!(seen, b"booted\r\n\xff\r\nlogin: root\r\n");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    assert_eq!(show_status(child.wait().unwrap()), "status 130");
}

#[test]
fn a_pipe_may_be_attached() {
    let host = Host::new("");
    let daemon = daemon(&host, "");
    daemon.on_json(&format!("GET /v1/instances/{}", id(1)), instance(1, "", "stopped"));
    let mut child = host
        .command(&format!("console {} --attach", id(1)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"date\x01x\n").unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"date\x01x\n") {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        seen.extend(byte);
    }
    // The guest hangs up.
    input.write_all(b"q").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(show_status(output.status), "status 0");
    expect![[r#"
        ec2vmm: the console of i-10000000000000000 has ended
    "#]]
    .assert_eq(&String::from_utf8(output.stderr).unwrap());
}

#[test]
fn a_terminal_is_attached_and_given_back() {
    for (keys, status) in [("\x01x", "status 0"), ("\x01hq", "status 0")] {
        let host = Host::new("");
        let daemon = daemon(&host, "");
        daemon.on_json(&format!("GET /v1/instances/{}", id(1)), instance(1, "", "stopped"));
        let terminal = Terminal::open();
        let mut command = terminal.command(&host.command(&format!("console {} --attach", id(1))));
        let mut child = command.spawn().unwrap();
        let mut seen = String::new();
        terminal.read_until(&mut seen, "login: ");
        assert!(terminal.is_raw(), "{seen:?}");
        terminal.type_in(b"ls\x03");
        terminal.read_until(&mut seen, "ls\x03");
        terminal.type_in(keys.as_bytes());
        let reader = terminal.drain();
        assert_eq!(show_status(child.wait().unwrap()), status, "{seen:?}");
        assert_eq!(terminal.mode(), terminal.found);
        drop(terminal);
        reader.join().unwrap();
    }
}

#[test]
fn top_gives_the_terminal_back() {
    for keys in ["q", "\x03"] {
        let host = Host::new("");
        let daemon = host.daemon();
        daemon.on_json("GET /v1/usage", json!({ "usage": [] }));
        daemon.on_json("GET /v1/instances", json!({ "instances": [] }));
        let terminal = Terminal::open();
        let mut child = terminal.command(&host.command("top")).spawn().unwrap();
        let mut seen = String::new();
        terminal.read_until(&mut seen, "CREDITS");
        assert!(seen.contains("\x1b[?1049h"), "{seen:?}");
        terminal.type_in(keys.as_bytes());
        terminal.read_until(&mut seen, "\x1b[?1049l");
        assert_eq!(show_status(child.wait().unwrap()), "status 0");
        assert_eq!(terminal.mode(), terminal.found);
    }
}

#[test]
fn an_instance_that_does_not_run() {
    let host = Host::new("");
    let daemon = host.daemon();
    let refusal = crate::daemon::problem(409, "IncorrectInstanceState", "The instance is not running.");
    daemon.on(&format!("GET /v1/instances/{}/console/stream", id(1)), [refusal]);
    host.check(
        &mut host.command(&format!("console {} --attach", id(1))),
        &expect![[r#"
            status 43
            -- stderr
            ec2vmm: The instance is not running. (IncorrectInstanceState)
            hint: `ec2vmm show ID` tells its state; `--wait` and `ec2vmm wait` wait for one
        "#]],
    );
}

fn daemon(host: &Host, says: &'static str) -> Daemon {
    let daemon = host.daemon();
    let path = format!("GET /v1/instances/{}/console", id(1));
    daemon.on_json(
        &path,
        json!({
            "instance_id": id(1),
            "timestamp": "2026-11-22T10:33:13.000Z",
            "output": "Ym9vdGVkDQr/DQpsb2dpbjog",
        }),
    );
    daemon.on(&format!("{path}/stream"), [Reply::Console(says)]);
    daemon
}
