//! What the daemon tells: events, timelines, cost, use, status, backups.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    process::Stdio,
};

use expect_test::expect;
use serde_json::{Value, json};

use crate::{
    daemon::{Reply, event, id, instance},
    host::Host,
};

#[test]
fn events() {
    let host = Host::new("");
    let daemon = host.daemon();
    let swept = json!({
        "sequence": 9,
        "time": "2026-11-22T10:33:15.000Z",
        "kind": "swept",
        "message": "removed tap tap-1\nof nobody",
    });
    daemon.on_json("GET /v1/events", json!({ "events": [event(7, 1, "pending", "running"), swept] }));
    host.check(
        &mut host.command("events"),
        &expect![[r#"
        status 0
        -- stdout
        2026-11-22T10:33:14.000Z  i-10000000000000000  state-changed     pending → running
        2026-11-22T10:33:15.000Z  -                    swept             removed tap tap-1\nof nobody
    "#]],
    );
    let last = host.command("events --last 1").output().unwrap().stdout;
    assert!(String::from_utf8(last).unwrap().contains("swept"));
    let output = host.command(&format!("events {} --last 5 --json", id(1))).output().unwrap();
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed["events"][0], event(7, 1, "pending", "running"));
    expect![[r#"
        GET /v1/events?max_results=1000
        GET /v1/events?max_results=1000
        GET /v1/events?instance_id=i-10000000000000000&max_results=1000"#]]
    .assert_eq(&daemon.asked().join("\n"));
}

#[test]
fn following_over_a_restart() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on_json("GET /v1/events", json!({ "events": [event(7, 1, "pending", "running")] }));
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    let mut child = host.command("events --follow --json").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next =
        || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap()["sequence"].clone();
    assert_eq!(next(), 7);
    daemon.wait_for("GET /v1/events/stream", 1);
    daemon.tell(&event(8, 1, "running", "stopping"));
    assert_eq!(next(), 8);
    drop(daemon);
    let daemon = host.daemon();
    daemon.on("GET /v1/events/stream", [Reply::Events]);
    daemon.wait_for("GET /v1/events/stream?after=8", 1);
    daemon.tell(&event(9, 1, "stopping", "stopped"));
    assert_eq!(next(), 9);
    // Whoever reads no more ends it with the next event.
    drop(lines);
    daemon.tell(&event(10, 1, "stopped", "pending"));
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn a_timeline() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on_json(
        &format!("GET /v1/instances/{}/timeline", id(1)),
        json!({
            "instance_id": id(1),
            "generation": 3,
            "requested": "2026-11-22T10:33:13.000Z",
            "steps": [
                { "name": "create volume", "began_us": 800, "took_us": 12_340 },
                { "name": "start machine", "began_us": 14_000, "took_us": 126_000 },
                { "name": "record", "began_us": 140_100, "took_us": 90 },
            ],
        }),
    );
    host.check(
        &mut host.command(&format!("events {} --timeline", id(1))),
        &expect![[r#"
        status 0
        -- stdout
        start 3 of i-10000000000000000, asked for at 2026-11-22T10:33:13.000Z, took 140.2 ms

           AFTER      TOOK  STEP
          800 µs   12.3 ms  create volume  ██
         14.0 ms  126.0 ms  start machine    ███████████████████████████
        140.1 ms     90 µs  record                                      █
    "#]],
    );
    assert_eq!(host.command("events --timeline").output().unwrap().status.code(), Some(2));
}

#[test]
fn cost() {
    let host = Host::new("");
    let daemon = host.daemon();
    let cost = |usd: &str| {
        json!({
            "compute_usd": usd,
            "cpu_credits_usd": "0.000000000",
            "storage_usd": "0.000010959",
            "addresses_usd": "0.000000000",
            "total_usd": usd,
            "usd_per_hour": "0.010400000",
            "running_seconds": 3661.5,
            "starts": 2,
            "unpriced": 0,
        })
    };
    let mut total = cost("1.234567890");
    total["unpriced"] = json!(3);
    let report = json!({
        "from": "2026-11-01T00:00:00.000Z",
        "to": "2026-11-22T10:33:13.000Z",
        "price_region": "us-east-1",
        "instances": [
            {
                "instance_id": id(1),
                "instance_type": "t3.micro",
                "state": "running",
                "tags": { "Name": "web" },
                "cost": cost("0.010577778"),
            },
            { "instance_id": id(2), "tags": {}, "cost": cost("0.000173333") },
        ],
        "others": cost("0.000000000"),
        "total": total,
    });
    daemon.on("GET /v1/cost", [Reply::Json(200, report.clone())]);
    host.check(
        &mut host.command("cost --from 2026-11-01"),
        &expect![[r#"
        status 0
        -- stdout
        ID                   NAME  TYPE      STATE    STARTS   RAN   COMPUTE   STORAGE       USD  USD/HOUR
        i-10000000000000000  web   t3.micro  running       2  1h1m  0.010578  0.000011  0.010578  0.010400
        i-20000000000000000  -     -         -             2  1h1m  0.000173  0.000011  0.000173  0.010400
        others               -     -         -             2  1h1m  0.000000  0.000011  0.000000  0.010400
        total                                              2  1h1m  1.234568  0.000011  1.234568  0.010400

        us-east-1, on demand, from 2026-11-01T00:00:00.000Z to 2026-11-22T10:33:13.000Z
        3 intervals are in no sum, because AWS publishes no price of the type
    "#]],
    );
    let mut with_credits = report.clone();
    with_credits["total"]["cpu_credits_usd"] = json!("0.050000000");
    with_credits["total"]["addresses_usd"] = json!("0.005000000");
    daemon.on_json("GET /v1/cost", with_credits);
    let output = host.command("cost").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("CREDITS") && text.contains("ADDRESSES") && text.contains("0.050000"), "{text}");
    daemon.on_json("GET /v1/cost", report.clone());
    let output = host.command(&format!("cost {} --json --to 2026-11-22T10:33:13Z", id(1))).output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), report);
    expect![[r#"
        GET /v1/cost?from=2026-11-01T00%3A00%3A00.000Z
        GET /v1/cost
        GET /v1/cost?to=2026-11-22T10%3A33%3A13.000Z&instance_id=i-10000000000000000"#]]
    .assert_eq(&daemon.asked().join("\n"));
}

#[test]
fn top() {
    let host = Host::new("");
    let daemon = host.daemon();
    let usage = |nth: u64, second: u64, cpu_us: u64| {
        json!({
            "instance_id": id(nth),
            "instance_type": "t3.micro",
            "vcpus": 2,
            "memory_mib": 1024,
            "timestamp": format!("2026-11-22T10:33:{second}.000Z"),
            "launch_time": "2026-11-22T10:30:00.000Z",
            "cpu_us": cpu_us,
            "memory_bytes": 200 << 20,
            "disk_read_bytes": second * 1024,
            "disk_written_bytes": 0,
            "net_received_bytes": 0,
            "net_sent_bytes": 0,
            "cpu_credits": 12.25,
        })
    };
    let before = json!({ "usage": [usage(1, 10, 0), usage(2, 10, 0)] });
    let after = json!({ "usage": [usage(1, 12, 100_000), usage(2, 12, 3_000_000)] });
    daemon.on("GET /v1/usage", [Reply::Json(200, before), Reply::Json(200, after)]);
    daemon.on_json("GET /v1/instances", json!({ "instances": [instance(1, "web", "running")] }));
    host.check(&mut host.command("top --once --interval 1ms"), &expect![[r#"
        status 0
        -- stdout
        ID                   NAME  TYPE       CPU%   MEMORY     OF  READ/S  WRITTEN/S  IN/S  OUT/S  CREDITS     UP
        i-20000000000000000  -     t3.micro  150.0  200 MiB  1 GiB   1 KiB        0 B   0 B    0 B     12.2  3m12s
        i-10000000000000000  web   t3.micro    5.0  200 MiB  1 GiB   1 KiB        0 B   0 B    0 B     12.2  3m12s
    "#]]);
}

#[test]
fn status() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on_json(
        "GET /v1/status",
        json!({
            "version": "0.1.0",
            "host": "simulated",
            "pid": 4711,
            "started": "2026-11-22T10:33:13.000Z",
            "region": "us-east-1",
            "instances": { "running": 3, "stopped": 1 },
            "capacity": { "vcpus": 16, "vcpus_given": 6, "memory_mib": 8192, "memory_given_mib": 3072 },
        }),
    );
    let output = host.command("status").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("up ")).collect();
    expect![[r#"
        daemon       ec2vmmd 0.1.0, process 4711
        host         simulated
        region       us-east-1
        instances    3 running, 1 stopped
        vcpus        6 of 16 given
        memory       3 GiB of 8 GiB given"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn backups() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("GET /v1/backup", [Reply::Half]);
    host.check(&mut host.command("backup copy.db"), &expect![[r#"
        status 46
        -- stderr
        ec2vmm: the daemon went away before it had answered in full: connection closed before message completed
        hint: `ec2vmm status` tells whether it is back; what was promised goes on
    "#]]);
    assert!(!host.path("copy.db").exists() && !host.path("copy.db.part").exists());
    daemon.on("GET /v1/backup", [Reply::Bytes(vec![b's'; 3 << 20])]);
    host.check(
        &mut host.command("backup copy.db"),
        &expect![[r#"
        status 0
        -- stdout
        copy.db  3 MiB
    "#]],
    );
    let path = host.path("copy.db");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    host.check(
        &mut host.command("backup copy.db"),
        &expect![[r#"
        status 26
        -- stderr
        ec2vmm: copy.db is there already
        hint: `--overwrite` replaces it
    "#]],
    );
    daemon.on("GET /v1/backup", [Reply::Bytes(b"other".to_vec())]);
    assert!(host.command("backup copy.db --overwrite").output().unwrap().status.success());
    let mut text = String::new();
    std::fs::File::open(path).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "other");
    assert!(!host.path("copy.db.part").exists());
    assert_eq!(host.command("backup nowhere/copy.db").output().unwrap().status.code(), Some(26));
}
