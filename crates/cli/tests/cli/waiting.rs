//! Waiting: for what is so already, what comes, what never comes; and over restarts of the daemon.

use std::process::{Child, Stdio};

use expect_test::{Expect, expect};
use serde_json::json;

use crate::{
    daemon::{Reply, event, id, instance, problem},
    host::Host,
};

#[test]
fn what_is_so_already() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    daemon.on_json("GET /v1/instances", list(&[("running", 1)]));
    host.check(
        &mut host.command(&format!("wait {}", id(1))),
        &expect![[r#"
            status 0
            -- stderr
            i-10000000000000000: running after TIME
        "#]],
    );
    let output = host.command(&format!("wait {} --for running --json", id(1))).output().unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen, list(&[("running", 1)]));
}

#[test]
fn launching_two_and_waiting() {
    let host = Host::new("");
    let daemon = host.daemon();
    let launched = json!({ "reservation_id": "r-1", "instances": [instance(1, "a", "pending"), instance(2, "b", "pending")] });
    daemon.on("POST /v1/instances", [Reply::Json(201, launched)]);
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    daemon.on_json("GET /v1/instances", list(&[("pending", 1), ("pending", 2)]));
    let waiting = start(&host, "launch debian-12 --count 2 --wait");
    daemon.wait_for("GET /v1/instances?id", 1);
    daemon.on_json("GET /v1/instances", list(&[("running", 1), ("pending", 2)]));
    daemon.tell(&event(1, 1, "pending", "running"));
    daemon.wait_for("GET /v1/instances?id", 2);
    daemon.on_json("GET /v1/instances", list(&[("running", 2)]));
    daemon.tell(&event(2, 2, "pending", "running"));
    waiting.ends(&expect![[r#"
        status 0
        -- stdout
        ID                   NAME  STATE    TYPE      ADDRESS      IMAGE                  KEY     LAUNCHED
        i-10000000000000000  -     running  t3.micro  172.31.0.11  ami-0123456789abcdef0  my-key  AGE
        i-20000000000000000  -     running  t3.micro  172.31.0.12  ami-0123456789abcdef0  my-key  AGE
        -- stderr
        i-10000000000000000: pending after TIME
        i-20000000000000000: pending after TIME
        i-10000000000000000: running after TIME
        i-20000000000000000: running after TIME
    "#]]);
}

#[test]
fn a_start_that_fails() {
    let host = Host::new("");
    let daemon = host.daemon();
    let change = json!({ "instance_id": id(1), "previous_state": "stopped", "current_state": "pending" });
    daemon.on_json(&format!("POST /v1/instances/{}/start", id(1)), change);
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    let mut stopped = instance(1, "web", "stopped");
    stopped["state_reason"] = json!({
        "code": "Server.InternalError",
        "message": "Server.InternalError: Internal error on launch",
    });
    daemon.on_json("GET /v1/instances", json!({ "instances": [stopped] }));
    let waiting = start(&host, &format!("start --wait {}", id(1)));
    waiting.ends(&expect![[r#"
        status 47
        -- stdout
        ID                   WAS      IS
        i-10000000000000000  stopped  pending
        -- stderr
        i-10000000000000000: stopped after TIME
        ec2vmm: i-10000000000000000 is stopped (Server.InternalError: Internal error on launch) and will not be running
        hint: `ec2vmm events i-10000000000000000` and `ec2vmm console i-10000000000000000` tell more
    "#]]);
}

#[test]
fn a_launch_that_fails_still_says_what_was_launched() {
    let host = Host::new("");
    let daemon = host.daemon();
    let launched = json!({ "reservation_id": "r-1", "instances": [instance(1, "", "pending")] });
    daemon.on("POST /v1/instances", [Reply::Json(201, launched.clone())]);
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    daemon.on_json("GET /v1/instances", list(&[("terminated", 1)]));
    let output = host.command("launch debian-12 --wait --json").output().unwrap();
    assert_eq!(output.status.code(), Some(47));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap(), launched);
    let output = host.command("launch debian-12 --wait --quiet").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\n", id(1)));
}

#[test]
fn what_turns_round() {
    for (words, states) in [
        ("wait --for running", ["pending", "stopping"]),
        ("wait --for running", ["stopped", "terminated"]),
        ("wait --for stopped", ["stopping", "shutting-down"]),
    ] {
        let host = Host::new("");
        let daemon = host.daemon();
        daemon.on("GET /v1/events/stream", [Reply::Events]);
        let [before, after] = states.map(|state| list(&[(state, 1)]));
        daemon.on_json("GET /v1/instances", before);
        let waiting = start(&host, &format!("{words} {}", id(1)));
        daemon.wait_for("GET /v1/instances?id", 1);
        daemon.on_json("GET /v1/instances", after);
        daemon.tell(&event(1, 1, states[0], states[1]));
        let output = waiting.child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(47), "{words} {states:?}: {output:?}");
    }
}

#[test]
fn a_reboot() {
    let host = Host::new("");
    let daemon = host.daemon();
    let change = json!({ "instance_id": id(1), "previous_state": "running", "current_state": "running" });
    daemon.on_json(&format!("POST /v1/instances/{}/reboot", id(1)), change);
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    let mut rebooting = instance(1, "web", "running");
    rebooting["reboot_requested_time"] = json!("2026-11-22T10:33:13.000Z");
    daemon.on_json("GET /v1/instances", json!({ "instances": [rebooting] }));
    let waiting = start(&host, &format!("reboot --wait --json {}", id(1)));
    daemon.wait_for("GET /v1/instances?id", 1);
    daemon.on_json("GET /v1/instances", list(&[("running", 1)]));
    daemon.tell(&event(1, 1, "running", "running"));
    waiting.ends(&expect![[r#"
        status 0
        -- stdout
        [
          {
            "instance_id": "i-10000000000000000",
            "previous_state": "running",
            "current_state": "running"
          }
        ]
        -- stderr
        i-10000000000000000: rebooting after TIME
        i-10000000000000000: rebooted after TIME
    "#]]);
}

#[test]
fn what_is_not_shown_any_more_is_terminated() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    daemon.on_json("GET /v1/instances", list(&[("shutting-down", 1)]));
    let words = format!("wait --for terminated {}", id(1));
    let waiting = start(&host, &words);
    daemon.wait_for("GET /v1/instances?id", 1);
    daemon.on("GET /v1/instances", [problem(400, "InvalidInstanceID.NotFound", "gone")]);
    daemon.tell(&event(1, 1, "shutting-down", "terminated"));
    waiting.ends(&expect![[r#"
        status 0
        -- stderr
        i-10000000000000000: shutting-down after TIME
    "#]]);
    // One that was never there is another matter.
    start(&host, &words).ends(&expect![[r#"
        status 42
        -- stderr
        ec2vmm: no answer to GET /v1/instances/i-10000000000000000 (InvalidInstanceID.NotFound)
        hint: `ec2vmm ls --all` lists the instances
    "#]]);
}

#[test]
fn time_is_up() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    daemon.on_json("GET /v1/instances", list(&[("pending", 1)]));
    host.check(
        &mut host.command(&format!("wait {} --timeout 200ms", id(1))),
        &expect![[r#"
            status 124
            -- stderr
            i-10000000000000000: pending after TIME
            ec2vmm: still waiting after 200ms: i-10000000000000000 is pending
            hint: what was asked for goes on; `ec2vmm wait` waits for it again
        "#]],
    );
}

#[test]
fn the_daemon_is_away_for_a_while() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    daemon.on_json("GET /v1/instances", list(&[("pending", 1)]));
    let waiting = start(&host, &format!("wait {}", id(1)));
    daemon.wait_for("GET /v1/instances?id", 1);
    drop(daemon);
    let daemon = host.daemon();
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    daemon.on_json("GET /v1/instances", list(&[("running", 1)]));
    waiting.ends(&expect![[r#"
        status 0
        -- stderr
        i-10000000000000000: pending after TIME
        ec2vmm: the daemon is away; waiting for it to come back
        i-10000000000000000: running after TIME
    "#]]);
}

#[test]
fn a_stream_that_ends_is_opened_again() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    daemon.on_json("GET /v1/instances", list(&[("pending", 1)]));
    let waiting = start(&host, &format!("wait {}", id(1)));
    daemon.wait_for("GET /v1/instances?id", 1);
    daemon.on_json("GET /v1/instances", list(&[("running", 1)]));
    daemon.hang_up();
    waiting.ends(&expect![[r#"
        status 0
        -- stderr
        i-10000000000000000: pending after TIME
        ec2vmm: the daemon is away; waiting for it to come back
        i-10000000000000000: running after TIME
    "#]]);
    daemon.wait_for("GET /v1/events/stream", 2);
}

fn list(states: &[(&str, u64)]) -> serde_json::Value {
    let instances: Vec<_> = states.iter().map(|(state, nth)| instance(*nth, "", state)).collect();
    json!({ "instances": instances })
}

/// A command that waits.
struct Waiting<'a> {
    host: &'a Host,
    child: Child,
}

fn start<'a>(host: &'a Host, words: &str) -> Waiting<'a> {
    let child = host.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    Waiting { host, child }
}

impl Waiting<'_> {
    fn ends(self, expect: &Expect) {
        expect.assert_eq(&self.host.show(&self.child.wait_with_output().unwrap()));
    }
}
