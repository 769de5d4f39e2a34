//! Serial consoles of instances: shown, followed, and this terminal attached to one.

use std::{
    io::{Read, Write},
    process::Stdio,
};

use expect_test::expect;
use rustix::process::{Pid, Signal, kill_process};
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
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
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
fn signals_give_the_terminal_back() {
    for (words, signal, status) in [
        (format!("console {} --attach", id(1)), Signal::TERM, "status 143"),
        (format!("console {} --attach", id(1)), Signal::HUP, "status 129"),
        ("top".to_owned(), Signal::TERM, "status 143"),
    ] {
        let host = Host::new("");
        let daemon = daemon(&host, "");
        daemon.on_json("GET /v1/usage", json!({ "usage": [] }));
        daemon.on_json("GET /v1/instances", json!({ "instances": [] }));
        let terminal = Terminal::open();
        let mut child = terminal.command(&host.command(&words)).spawn().unwrap();
        let mut seen = String::new();
        terminal.read_until(&mut seen, if words == "top" { "CREDITS" } else { "login: " });
        kill_process(Pid::from_child(&child), signal).unwrap();
        let reader = terminal.drain();
        assert_eq!(show_status(child.wait().unwrap()), status, "{words}: {seen:?}");
        assert_eq!(terminal.mode(), terminal.found, "{words}");
        drop(terminal);
        reader.join().unwrap();
    }
}

#[test]
fn colour_and_width_are_for_terminals() {
    let colours = expect![[r#"
        ^[1mID^[0m                   ^[1mNAME^[0m          ^[1mSTATE^[0m    ^[1mTYPE^[0m      ^[1mADDRESS^[0m      ^[1mIMAGE^[0m                  ^[1mKEY^[0m   
        i-10000000000000000  a web server  ^[32mrunning^[0m  t3.micro  172.31.0.11  ami-0123456789abcdef0  my-key
        i-20000000000000000  -             ^[34mstopped^[0m  t3.micro  172.31.0.12  ami-0123456789abcdef0  my-key"#]];
    colours.assert_eq(&listed(200, false).replace('\u{1b}', "^"));
    let plain = listed(200, true);
    assert!(plain.contains("a web server") && !plain.contains('\u{1b}'), "{plain}");
    // How much is cut off depends on the ages beside it.
    let narrow = listed(80, true);
    assert!(narrow.contains('…') && narrow.contains(&id(1)) && narrow.contains("172.31.0.12"), "{narrow}");
    assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
}

/// A table on a terminal, without the last column.
fn listed(columns: u16, plain: bool) -> String {
    let host = Host::new("");
    let daemon = host.daemon();
    let found = [instance(1, "a web server", "running"), instance(2, "", "stopped")];
    daemon.on_json("GET /v1/instances", json!({ "instances": found }));
    let terminal = Terminal::open();
    terminal.resize(columns);
    let mut like = host.command("ls");
    if plain {
        like.env("NO_COLOR", "1");
    }
    let mut child = terminal.command(&like).spawn().unwrap();
    let mut seen = String::new();
    terminal.read_until(&mut seen, &id(2));
    let mut rest = seen.split_off(seen.find(&id(2)).unwrap());
    terminal.read_until(&mut rest, " ago");
    seen += &rest;
    assert!(child.wait().unwrap().success());
    let lines = seen.lines().map(|line| line.rsplit_once("  ").map_or(line, |(line, _)| line));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn progress_moves_on_a_terminal() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    daemon.on_json("GET /v1/instances", json!({ "instances": [instance(1, "", "pending")] }));
    let terminal = Terminal::open();
    let mut like = host.command(&format!("wait {}", id(1)));
    like.env("TERM", "xterm");
    let mut child = terminal.command(&like).spawn().unwrap();
    let mut seen = String::new();
    terminal.read_until(&mut seen, "pending");
    daemon.on_json("GET /v1/instances", json!({ "instances": [instance(1, "", "running")] }));
    daemon.tell(&crate::daemon::event(1, 1, "pending", "running"));
    terminal.read_until(&mut seen, "running after ");
    let reader = terminal.drain();
    assert!(child.wait().unwrap().success(), "{seen:?}");
    drop(terminal);
    reader.join().unwrap();
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
