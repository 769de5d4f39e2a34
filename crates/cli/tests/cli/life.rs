//! The verbs against a real daemon on a simulated host: what people do in a day.

use std::{
    io::{BufRead, BufReader},
    process::{Output, Stdio},
};

use serde_json::Value;

use crate::{
    cloud::{RealDaemon, simulated},
    host::Host,
};

#[test]
fn a_day() {
    let (host, machines) = (Host::new(""), simulated());
    let daemon = RealDaemon::start(&host.path(""), &machines);
    let does = |words: &str| succeeds(&host, words);
    does("image register disk.raw --name debian-12 --login-user debian");
    assert!(does("image ls").contains("debian-12"));
    let id = does("launch debian-12 --name web --wait --quiet --tag team=a").trim_end().to_owned();
    assert!(does("ls").contains(&id) && does("ls --filter tag:team=a -q").contains(&id));
    assert!(!does("ls --filter tag:team=b").contains(&id));
    assert!(does("show web").contains("ssh debian@172.31."));
    assert!(does("console web").contains("Linux"));
    let rebooted = host.command("reboot web --wait").output().unwrap();
    let told = String::from_utf8(rebooted.stderr).unwrap();
    assert!(rebooted.status.success() && told.contains(&format!("{id}: rebooted after")), "{told}");
    assert!(does("events web").contains("rebooted"));
    assert!(does("events web --timeline").contains("STEP"));
    assert!(does("top --once --interval 10ms").contains(&id));
    does("stop web --wait");
    does("modify web --type t3.small");
    does(&format!("start {} --wait", &id[..6]));
    assert_eq!(json(&host, "show web --json")["instance_type"], "t3.small");
    does("tag web team=b purpose=");
    does("untag web team");
    let tags = &json(&host, "show web --json")["tags"];
    assert!(tags["team"].is_null() && tags["purpose"] == "", "{tags}");
    let cost = json(&host, "cost web --json");
    assert_eq!(cost["total"]["starts"], 2);
    assert!(does("cost").contains("total") && does("cost --from 2020-01-01").contains("2020-01-01"));
    assert!(does("status").contains("1 running"));
    does("backup copy.db");
    assert!(std::fs::read(host.path("copy.db")).unwrap().starts_with(b"SQLite format 3\0"));
    does("terminate web --wait");
    assert!(does("ls").lines().count() == 1 && does("ls --all").contains("terminated"));
    does("wait web --for terminated");
    does("image rm debian-12");
    daemon.stop();
}

#[test]
fn keys() {
    let (host, machines) = (Host::new(""), simulated());
    let daemon = RealDaemon::start(&host.path(""), &machines);
    for (words, file, begins) in [
        ("key create rsa", "rsa.pem", "-----BEGIN RSA PRIVATE KEY-----"),
        ("key create ed --type ed25519", "ed.pem", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("key create putty --type ed25519 --format ppk", "putty.ppk", "PuTTY-User-Key-File-3: ssh-ed25519"),
    ] {
        succeeds(&host, words);
        let key = std::fs::read_to_string(host.path(file)).unwrap();
        assert!(key.starts_with(begins), "{words}: {}", &key[..40]);
    }
    // ssh-keygen(1) reads what was made, and what it makes of it can be imported.
    let read =
        std::process::Command::new("ssh-keygen").arg("-yf").arg(host.path("rsa.pem")).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    std::fs::write(host.path("rsa.pub"), &read.stdout).unwrap();
    succeeds(&host, "key import again rsa.pub");
    assert_eq!(succeeds(&host, "key ls --quiet").lines().count(), 4);
    let taken = host.command("key create rsa --output other.pem").output().unwrap();
    assert_eq!(taken.status.code(), Some(43), "{}", String::from_utf8_lossy(&taken.stderr));
    assert!(!host.path("other.pem").exists());
    succeeds(&host, "image register disk.raw --name debian-12");
    let launched = json(&host, "launch debian-12 --key ed --wait --json");
    assert_eq!(launched["instances"][0]["key_name"], "ed");
    succeeds(&host, "key rm rsa ed putty again");
    assert_eq!(succeeds(&host, "key ls --quiet"), "");
    daemon.stop();
}

#[test]
fn what_is_refused() {
    let (host, machines) = (Host::new(""), simulated());
    let daemon = RealDaemon::start(&host.path(""), &machines);
    succeeds(&host, "image register disk.raw --name debian-12");
    succeeds(&host, "launch debian-12 --name safe --protect --protect-stop --wait");
    for (words, status, code) in [
        ("launch nothing", 42, "InvalidAMIID.NotFound"),
        ("launch debian-12 --type t9.huge", 41, "InvalidParameterValue"),
        ("launch debian-12 --key nobody", 42, "InvalidKeyPair.NotFound"),
        ("launch debian-12 --type m5.4xlarge --count 1000", 44, "InsufficientInstanceCapacity"),
        ("launch debian-12 --count 5000", 41, "InvalidParameterValue"),
        ("show i-0123456789abcdef0", 42, "InvalidInstanceID.NotFound"),
        ("stop safe", 43, "OperationNotPermitted"),
        ("terminate safe", 43, "OperationNotPermitted"),
        ("start safe i-0123456789abcdef0", 42, "InvalidInstanceID.NotFound"),
        ("modify safe --type t3.small", 43, "IncorrectInstanceState"),
        ("ls --filter colour=red", 41, "InvalidParameterValue"),
        ("events i-0123456789abcdef0 --timeline", 42, "InvalidInstanceID.NotFound"),
        ("tag ami-0123456789abcdef0 a=b", 42, "InvalidAMIID.NotFound"),
        ("tag safe aws:a=b", 41, "InvalidParameterValue"),
        ("key rm nobody", 42, "InvalidKeyPair.NotFound"),
        ("image rm nothing", 42, "InvalidAMIID.NotFound"),
        ("cost i-0123456789abcdef0", 42, "InvalidInstanceID.NotFound"),
    ] {
        let output = host.command(words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{words}: {said}");
        assert!(said.contains(code), "{words}: {said}");
    }
    daemon.stop();
}

#[test]
fn a_launch_that_the_daemon_is_upgraded_under() {
    let (host, machines) = (Host::new(""), simulated());
    let mut daemon = RealDaemon::start(&host.path(""), &machines);
    succeeds(&host, "image register disk.raw --name debian-12");
    for round in 0..3 {
        let words = format!("launch debian-12 --count 20 --tag round={round} --wait --quiet");
        let mut child = host.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It waits, and tells so.
        let mut progress = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        progress.read_line(&mut line).unwrap();
        daemon.stop();
        daemon = RealDaemon::start(&host.path(""), &machines);
        let rest = std::thread::spawn(move || {
            let lines = progress.lines();
            lines.map_while(Result::ok).collect::<Vec<_>>()
        });
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{:?}", rest.join());
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 20);
        let running = format!("ls --quiet --filter tag:round={round} --filter instance-state-name=running");
        assert_eq!(succeeds(&host, &running).lines().count(), 20);
    }
    daemon.stop();
}

#[test]
fn as_many_as_there_is_room_for() {
    let (host, machines) = (Host::new(""), simulated());
    let daemon = RealDaemon::start(&host.path(""), &machines);
    succeeds(&host, "image register disk.raw --name debian-12");
    // So many fill the simulated host's 256 vCPUs.
    succeeds(&host, "launch debian-12 --type t3.nano --count 1:1000");
    let ids = succeeds(&host, "ls --quiet");
    assert_eq!(ids.lines().count(), 128);
    let ids: Vec<&str> = ids.lines().collect();
    succeeds(&host, &format!("terminate {} --wait", ids.join(" ")));
    assert_eq!(succeeds(&host, "ls --quiet"), "");
    daemon.stop();
}

fn succeeds(host: &Host, words: &str) -> String {
    let Output { status, stdout, stderr } = host.command(words).output().unwrap();
    assert!(status.success(), "{words}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn json(host: &Host, words: &str) -> Value {
    serde_json::from_str(&succeeds(host, words)).unwrap()
}
