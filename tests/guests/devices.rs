//! Devices as Linux has them: several queues, limits that hold requests up and lose none, and memory that
//! is taken from a guest and given again.

use std::{fs, process::Command};

use ec2vmm_vmm_api::control::{Balloon, Metrics};

use crate::{
    hard_kills::run,
    machine::{Machine, Plan, poll},
    minimal::{power_off, private_bytes, ready},
    network::noise,
    place,
    tap::Tap,
};

#[test]
#[ignore = "boots Linux"]
fn queues_and_limits() {
    let _tap = Tap::make(TAP, HOST, &["multi_queue"]);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.raw");
    fs::write(&data, noise(4 << 20)).unwrap();
    let disk = format!("{},readonly,iops=10/1,queues=3", data.display());
    let net = format!("tap={TAP},mtu=1400,tx-pps=20/1");
    let plan = Plan::boot(&place::image("minimal.raw")).args(["--cpus", "2", "--memory", "256M"]);
    let mut machine = ready(plan.args(["--disk", &disk, "--net", &net]));

    assert_eq!(machine.sh("ls /sys/block/vda/mq | wc -l"), "2", "a queue for each vCPU");
    assert_eq!(machine.sh("ls /sys/block/vdb/mq | wc -l"), "2", "no more than there are vCPUs");
    let queues = "ls -d /sys/class/net/eth0/queues/rx-* /sys/class/net/eth0/queues/tx-* | wc -l";
    assert_eq!(machine.sh(queues), "4", "a pair for each vCPU");
    assert_eq!(metric(&machine, "net0", "queue_pairs"), 2);
    assert_eq!(machine.sh("cat /sys/class/net/eth0/mtu"), "1400");

    let sum = run(Command::new("md5sum").arg(&data));
    let sum = sum.split(' ').next().unwrap();
    assert_eq!(machine.sh("md5sum </dev/vdb").split(' ').next(), Some(sum));
    assert!(metric(&machine, "block1", "throttled") > 0, "{:?}", metrics(&machine));
    assert_eq!(metric(&machine, "block0", "throttled"), 0);
    the_card_does_what_its_driver_says(&mut machine);
    power_off(machine);
}

fn the_card_does_what_its_driver_says(machine: &mut Machine) {
    // It looks for DHCP, and would take the address away again.
    machine.sh("until killall udhcpc; do usleep 50000; done");
    // While the interface is down Linux uses the control queue alone.
    machine.sh("ip link set eth0 down && ip link set eth0 address 02:00:00:00:77:01");
    machine.sh("ip addr add 10.99.8.2/24 dev eth0 && ip link set eth0 up");
    assert_eq!(machine.sh("cat /sys/class/net/eth0/address"), "02:00:00:00:77:01");
    assert!(metric(machine, "net0", "commands") > 0);
    assert_eq!(metric(machine, "net0", "refused"), 0);
    // Until so many were answered, however late.
    let ping = |count: &str| {
        Command::new("ping").args(["-c", count, "-w", "60", "-i", "0.005", GUEST]).output().unwrap()
    };
    poll("the guest answers", || ping("1").status.success().then_some(()));
    // Twenty a second go out of the guest, fewer than the slowest gives; what waits is not lost.
    let pings = ping("60");
    let said = String::from_utf8_lossy(&pings.stdout);
    let answered = said.lines().filter_map(|line| line.split_once("icmp_seq=")?.1.split(' ').next());
    let answered: Vec<u32> = answered.map(|number| number.parse().unwrap()).collect();
    assert_eq!(answered, Vec::from_iter(1..=60), "{said}");
    assert!(metric(machine, "net0", "tx_throttled") > 0, "{:?}", metrics(machine));
    assert_eq!(metric(machine, "net0", "rx_throttled"), 0);
}

#[test]
#[ignore = "boots Linux"]
fn memory_is_taken_and_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.raw");
    fs::File::create(&disk).unwrap().set_len(200 << 20).unwrap();
    let plan = Plan::boot(&place::image("minimal.raw")).args(["--cpus", "1", "--memory", "512M"]);
    let mut machine = ready(plan.arg("--disk").arg(&disk));
    let process = machine.process().unwrap();
    let resident = || private_bytes(process, |len| len >= 500 << 20);
    let statistics = poll("the guest tells of its memory", || {
        Some(balloon(&machine)).filter(|balloon| balloon.statistics_count > 0)
    });
    let total = statistics.statistics["guest_total_bytes"];
    assert!((400 << 20..=512 << 20).contains(&total), "{statistics:?}");

    // The page cache holds it, and gives way.
    let read_disk = |machine: &mut Machine| {
        assert_eq!(machine.sh("cat /dev/vdb | wc -c"), (200 << 20).to_string());
    };
    read_disk(&mut machine);
    let full = resident();
    assert!(full >= 200 << 20, "{full} bytes of guest memory");
    let available = available_kib(&mut machine);
    set_target(&machine, 320 << 20);
    poll("the guest gives memory back", || (balloon(&machine).actual_bytes == 320 << 20).then_some(()));
    poll("the host has it", || (resident() < full - (100 << 20)).then_some(()));
    let left = available_kib(&mut machine);
    assert!(left + (200 << 10) < available, "{left} KiB of {available} KiB are available to programs");
    let count = balloon(&machine).statistics_count;
    poll("fresh statistics", || (balloon(&machine).statistics_count > count).then_some(()));

    set_target(&machine, 0);
    poll("the guest takes memory again", || (balloon(&machine).actual_bytes == 0).then_some(()));
    assert!(available_kib(&mut machine) > left + (200 << 10));
    read_disk(&mut machine);
    power_off(machine);
}

fn available_kib(machine: &mut Machine) -> u64 {
    machine.sh("sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo").parse().unwrap()
}

fn balloon(machine: &Machine) -> Balloon {
    serde_json::from_str(&machine.request("GET", "/machine/balloon", "")).unwrap()
}

fn set_target(machine: &Machine, bytes: u64) {
    machine.request("PUT", "/machine/balloon", &format!(r#"{{"target_bytes":{bytes}}}"#));
}

fn metrics(machine: &Machine) -> Metrics {
    serde_json::from_str(&machine.request("GET", "/metrics", "")).unwrap()
}

fn metric(machine: &Machine, device: &str, name: &str) -> u64 {
    metrics(machine).devices[device][name]
}

const TAP: &str = "ec2vmmq0";
const HOST: &str = "10.99.8.1";
const GUEST: &str = "10.99.8.2";
