//! Instances of the control daemon on real machines.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{daemon::Daemon, machine::poll, place, ssh};

#[test]
#[ignore = "boots Linux"]
fn a_life() {
    let mut daemon = Daemon::start(&[]);
    let key = prepare(&daemon);
    let launched =
        daemon.json(&["launch", "minimal", "--type", "t3.micro", "--key", "my-key", "--name", "web"]);
    let id = launched["instances"][0]["instance_id"].as_str().unwrap().to_owned();
    assert_eq!(launched["instances"][0]["state"], "pending");
    daemon.wait(&id, "running");
    let address = address(&daemon, &id);
    assert_eq!(ssh(&key, &address, "nproc"), "2\n");
    assert!(daemon.cli(&["console", &id]).contains("minimal ready"));
    let process = daemon.machine_process(&id);
    assert!(process.is_some());
    for limit in ["memory.max", "pids.max"] {
        assert_ne!(daemon.limit(&id, limit), "max", "{limit} of a t3.micro");
    }

    survives_the_daemon(&mut daemon, &id, &key);
    assert_eq!(daemon.machine_process(&id), process);

    let boot = ssh(&key, &address, "cat /proc/sys/kernel/random/boot_id");
    ssh(&key, &address, "echo kept >/root/kept");
    daemon.cli(&["reboot", &id, "--wait"]);
    poll("it has booted again", || {
        try_ssh(&key, &address, "cat /proc/sys/kernel/random/boot_id").filter(|now| *now != boot)
    });
    assert_eq!(daemon.machine_process(&id), process, "a reboot keeps the process");
    assert_eq!(ssh(&key, &address, "cat /root/kept"), "kept\n");

    daemon.cli(&["stop", &id, "--wait"]);
    assert_eq!(daemon.machine_process(&id), None);
    assert_eq!(daemon.instance(&id)["state_reason"]["code"], "Client.UserInitiatedShutdown");
    daemon.cli(&["modify", &id, "--type", "t3.small"]);
    daemon.cli(&["start", &id, "--wait"]);
    assert_eq!(self::address(&daemon, &id), address, "the address is kept");
    assert_eq!(ssh(&key, &address, "cat /root/kept"), "kept\n");
    let memory_kib: u64 = ssh(&key, &address, "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")
        .trim()
        .parse()
        .unwrap();
    assert!((1_700_000..2_097_152).contains(&memory_kib), "{memory_kib} KiB in a t3.small");

    try_ssh(&key, &address, "poweroff");
    daemon.wait(&id, "stopped");
    assert_eq!(daemon.instance(&id)["state_reason"]["code"], "Client.InstanceInitiatedShutdown");

    daemon.cli(&["start", &id, "--wait"]);
    kill(daemon.machine_process(&id).unwrap());
    daemon.wait(&id, "stopped");
    assert_eq!(daemon.instance(&id)["state_reason"]["code"], "Server.InternalError");

    let cost = daemon.json(&["cost"]);
    assert_eq!(cost["instances"][0]["cost"]["starts"], 3, "{cost}");
    let least = 60.0 / 3600.0 * (0.0104 + 2.0 * 0.0208);
    let total: f64 = cost["total"]["total_usd"].as_str().unwrap().parse().unwrap();
    assert!(total >= least, "a minute of a t3.micro and two of a t3.small: {cost}");
    daemon.cli(&["terminate", &id, "--wait"]);
    daemon.end();
}

/// kill -9 and a new daemon: the machine goes on, and so does what is asked about it.
fn survives_the_daemon(daemon: &mut Daemon, id: &str, key: &Path) {
    let address = address(daemon, id);
    let before = daemon.instance(id);
    let up = ssh(key, &address, "cat /proc/sys/kernel/random/boot_id");
    daemon.kill();
    assert_eq!(ssh(key, &address, "cat /proc/sys/kernel/random/boot_id"), up, "without a daemon");
    daemon.start_again();
    assert_eq!(daemon.instance(id), before);
    assert_eq!(ssh(key, &address, "cat /proc/sys/kernel/random/boot_id"), up, "with a new daemon");
    assert!(daemon.cli(&["console", id]).contains("minimal ready"));
}

/// An instance store is kept over a reboot, and lost with a stop.
#[test]
#[ignore = "boots Linux"]
fn an_instance_store() {
    let daemon = Daemon::start(&[]);
    let key = prepare(&daemon);
    let launched = daemon.json(&["launch", "minimal", "--type", "m3.medium", "--key", "my-key", "--wait"]);
    let id = launched["instances"][0]["instance_id"].as_str().unwrap().to_owned();
    let address = address(&daemon, &id);
    let boot = ssh(&key, &address, "cat /proc/sys/kernel/random/boot_id");
    assert_eq!(ssh(&key, &address, "cat /sys/block/vdb/size").trim(), (4_000_000_000_u64 / 512).to_string());
    let serial = format!("AWS{}", id.trim_start_matches("i-"));
    assert_eq!(ssh(&key, &address, "cat /sys/block/vdb/serial").trim(), serial);
    ssh(&key, &address, "echo here >/dev/vdb");
    daemon.cli(&["reboot", &id]);
    poll("it has booted again", || {
        try_ssh(&key, &address, "cat /proc/sys/kernel/random/boot_id").filter(|now| *now != boot)
    });
    assert_eq!(ssh(&key, &address, "head -c 4 /dev/vdb"), "here");
    daemon.cli(&["stop", &id, "--wait"]);
    daemon.cli(&["start", &id, "--wait"]);
    assert_eq!(ssh(&key, &address, "head -c 4 /dev/vdb | tr -d '\\0'"), "");
    daemon.cli(&["terminate", &id, "--wait"]);
    daemon.end();
}

/// kill -9 of the daemon right after each request has been answered, a dozen times: what was promised comes.
#[test]
#[ignore = "boots Linux"]
fn promises_outlive_the_daemon() {
    let mut daemon = Daemon::start(&["--stop-grace", "120s"]);
    prepare(&daemon);
    let launch = ["launch", "minimal", "--type", "t3.nano", "--key", "my-key", "--count", "2"];
    let launched = daemon.json(&launch);
    let ids: Vec<String> = launched["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|instance| instance["instance_id"].as_str().unwrap().to_owned())
        .collect();
    let [one, two] = [ids[0].as_str(), ids[1].as_str()];
    for (asked, who, state) in [
        (vec![], one, "running"),
        (vec!["stop", one, "--force"], one, "stopped"),
        (vec!["start", one], one, "running"),
        (vec!["reboot", two], two, "running"),
        (vec!["stop", two, "--force"], two, "stopped"),
        (vec!["start", two], two, "running"),
        (vec!["terminate", one], one, "terminated"),
        (vec!["terminate", two], two, "terminated"),
    ] {
        if !asked.is_empty() {
            daemon.cli(&asked);
        }
        daemon.kill();
        daemon.start_again();
        daemon.wait(who, state);
        let there = u32::from(daemon.machine_process(who).is_some());
        assert_eq!(there, u32::from(state == "running"), "{who} is {state}");
    }
    daemon.end();
}

/// A machine that does not listen to its power button is forced when the grace period is over.
#[test]
#[ignore = "boots Linux"]
fn a_machine_that_ignores_the_power_button() {
    let daemon = Daemon::start(&["--stop-grace", "1s"]);
    prepare(&daemon);
    // It runs by the monitor's measure long before its kernel knows of a button.
    let launched = daemon.json(&["launch", "minimal", "--type", "t3.nano", "--wait"]);
    let id = launched["instances"][0]["instance_id"].as_str().unwrap().to_owned();
    daemon.cli(&["stop", &id, "--wait"]);
    assert_eq!(daemon.machine_process(&id), None);
    daemon.cli(&["terminate", &id, "--wait"]);
    daemon.end();
}

/// Registers `minimal`, and creates `my-key`; gives its file.
fn prepare(daemon: &Daemon) -> PathBuf {
    let image = place::image("minimal.raw");
    let image = fs::canonicalize(image).unwrap();
    daemon.cli(&["image", "register", image.to_str().unwrap(), "--name", "minimal", "--login-user", "root"]);
    let key = daemon.folder().join("my-key.pem");
    daemon.cli(&["key", "create", "my-key", "--type", "ed25519", "--output", key.to_str().unwrap()]);
    key
}

fn address(daemon: &Daemon, id: &str) -> String {
    let instance: Value = daemon.instance(id);
    instance["private_ip_address"].as_str().unwrap().to_owned()
}

/// Runs a command in the instance, as soon as it lets anybody in.
fn ssh(key: &Path, address: &str, command: &str) -> String {
    poll("ssh", || try_ssh(key, address, command))
}

fn try_ssh(key: &Path, address: &str, command: &str) -> Option<String> {
    let options = ["ConnectTimeout=5", "ServerAliveInterval=5"];
    let output = ssh::command(key, address, &options, command).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn kill(process: u32) {
    let status = Command::new("kill").args(["-9", &process.to_string()]).status().unwrap();
    assert!(status.success());
}
