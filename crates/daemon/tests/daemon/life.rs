//! Start, serve, end; and end without a word.

use std::{
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
};

use rustix::process::Signal;
use serde_json::json;

use crate::place::{Place, next_event};

#[test]
fn it_ends_when_it_is_told_to() {
    let place = Place::new();
    let mut daemon = place.start();
    assert_eq!(place.get("/readyz")["status"], "ok");
    assert_eq!(std::fs::metadata(&place.socket).unwrap().permissions().mode() & 0o777, 0o660);
    let mut events = place.events(0);
    let mut idle = place.connect();
    place.furnish();
    daemon.signal(Signal::TERM);
    place.notice("STOPPING=1");
    assert_eq!(daemon.ended().code(), Some(0), "{}", place.log());
    while next_event(&mut events).is_some() {}
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert!(!place.socket.exists());
}

#[test]
fn what_was_promised_outlives_kill_9() {
    let place = Place::new();
    let mut daemon = place.start();
    let id = place.furnish();
    place.post(&format!("/v1/tags/{id}"), &json!({"tags": {"Name": "survivor"}}));
    let launch = json!({"image": "minimal", "instance_type": "t3.nano", "min_count": 20});
    let launched = place.post("/v1/instances", &launch);
    let before = place.get("/v1/events");
    daemon.0.kill().unwrap();
    daemon.ended();
    assert!(place.socket.exists(), "nobody was left to remove it");

    let _next = place.start_as(place.command().arg("--restart-on-boot"));
    // A simulated machine is gone with its daemon; the instance is started again.
    let survivor = place.until(&id, "running");
    assert_eq!(survivor["tags"]["Name"], "survivor");
    for instance in launched["instances"].as_array().unwrap() {
        let now = place.until(instance["instance_id"].as_str().unwrap(), "running");
        assert_eq!(now["private_ip_address"], instance["private_ip_address"]);
    }
    let after = place.get("/v1/events");
    let sequence = |events: &serde_json::Value| events["events"][0]["sequence"].clone();
    assert_eq!(sequence(&before), sequence(&after), "events are remembered");
}

#[test]
fn a_request_under_way_is_answered() {
    let place = Place::new();
    let mut daemon = place.start();
    let mut stream = place.connect();
    let body = r#"{"name": "late", "kind": "rsa", "bits": 4096}"#;
    let head = format!(
        "POST /v1/key-pairs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let (first, rest) = body.split_at(10);
    stream.write_all((head + first).as_bytes()).unwrap();
    // Its head was read: the next request on another connection is answered after that.
    while !std::str::from_utf8(&metrics(&place)).unwrap().contains("ec2vmm_requests_under_way 2") {}
    daemon.signal(Signal::TERM);
    place.notice("STOPPING=1");
    stream.write_all(rest.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert!(answer.contains("PRIVATE KEY"), "{answer}");
    assert_eq!(daemon.ended().code(), Some(0));
}

fn metrics(place: &Place) -> Vec<u8> {
    let mut stream = place.connect();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn the_watchdog_is_fed() {
    let place = Place::new();
    let mut command = place.command();
    command.env("WATCHDOG_USEC", "100000");
    let _daemon = place.start_as(&mut command);
    place.notice("WATCHDOG=1");
    place.notice("WATCHDOG=1");
}

#[test]
fn a_log_for_programs() {
    let place = Place::new();
    let mut daemon = place.start_as(place.command().args(["--log-format", "json"]));
    place.get("/healthz");
    daemon.signal(Signal::TERM);
    daemon.ended();
    let lines: Vec<serde_json::Value> = place
        .log()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect();
    let answered = lines.iter().find(|line| line["message"] == "answered").expect("a line for the request");
    assert_eq!(answered["status"], 200);
    assert_eq!(answered["spans"][0]["path"], "/healthz");
}

#[test]
fn a_socket_that_systemd_passes() {
    use std::os::unix::net::UnixListener;

    use command_fds::{CommandFdExt, FdMapping};

    let place = Place::new();
    std::fs::create_dir(place.socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(&place.socket).unwrap();
    // As systemd does it: the pid is known only after the fork, so a shell says it.
    let mut command = std::process::Command::new("sh");
    let daemon = place.command();
    command.arg("-c").arg("export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\"").arg(daemon.get_program());
    command.args(daemon.get_args()).env("NOTIFY_SOCKET", place.folder.path().join("notify"));
    command.fd_mappings(vec![FdMapping { parent_fd: listener.into(), child_fd: 3 }]).unwrap();
    let mut daemon = place.start_as(&mut command);
    assert_eq!(place.get("/healthz")["status"], "ok");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(place.socket.exists(), "its name is systemd's to remove");
}
