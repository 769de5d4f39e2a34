//! Devices that come and go under Linux, which finds them without being told to look, and machines that are
//! paused.

use std::{
    fs::File,
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    os::unix::{fs::FileExt, net::UnixStream},
};

use ec2vmm_vmm_api::{
    Event,
    control::{Disk, Disks, PowerAction, State},
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::{
    machine::{Machine, Plan},
    minimal::{power_off, ready, shell},
    place,
    tap::Tap,
};

/// Sends a request with descriptors; gives the whole answer.
fn send(machine: &Machine, path: &str, body: &str, descriptors: &[BorrowedFd<'_>]) -> String {
    let stream = UnixStream::connect(machine.path("control")).unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    let bytes = [IoSlice::new(request.as_bytes())];
    rustix::net::sendmsg(&stream, &bytes, &mut ancillary, SendFlags::empty()).unwrap();
    std::io::read_to_string(stream).unwrap()
}

fn attach_disk(machine: &mut Machine, id: &str, file: &File) -> Disk {
    let body = format!(r#"{{"id":"{id}","layers":["raw"],"serial":"{id}"}}"#);
    let answer = send(machine, "/machine/disks", &body, &[file.as_fd()]);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap()
}

/// Waits until a command succeeds in the guest: for what its kernel does in its own time.
fn until(machine: &mut Machine, condition: &str) {
    machine.sh(&format!("until {condition}; do usleep 200000; done"));
}

fn wait_detached(machine: &mut Machine, wanted: &str) {
    machine.wait_for_event(|event| matches!(event, Event::Detached { id, .. } if id == wanted).then_some(()));
}

fn file(mib: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(mib << 20).unwrap();
    file
}

#[test]
#[ignore = "boots Linux"]
fn disks_come_grow_stay_and_go() {
    let mut machine = ready(Plan::boot(&place::image("minimal.raw")));
    assert_eq!(machine.sh("ls /sys/block | tr '\\n' ' '").trim(), "vda");
    let data = file(64);
    data.write_all_at(b"from the host", 0).unwrap();
    assert_eq!(attach_disk(&mut machine, "data", &data).size_bytes, 64 << 20);
    until(&mut machine, "test -b /dev/vdb");
    assert_eq!(machine.sh("cat /sys/block/vdb/serial /sys/block/vdb/size"), "data131072");
    assert_eq!(machine.sh("head -c 13 /dev/vdb"), "from the host");
    machine.sh("printf 'from the guest' | dd of=/dev/vdb conv=fsync 2>/dev/null");
    let mut seen = [0; 14];
    data.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"from the guest");

    // It grows: by itself, and by somebody else's hand.
    let size = |bytes: &str| format!(r#"{{"bytes":{bytes}}}"#);
    machine.request("PUT", "/machine/disks/data/size", &size("134217728"));
    until(&mut machine, "test $(cat /sys/block/vdb/size) = 262144");
    data.set_len(192 << 20).unwrap();
    machine.request("PUT", "/machine/disks/data/size", &size("null"));
    until(&mut machine, "test $(cat /sys/block/vdb/size) = 393216");
    machine.sh("echo end | dd of=/dev/vdb bs=1M seek=191 conv=fsync 2>/dev/null");

    machine.last_words("reboot");
    machine.wait_for_event(|event| matches!(event, Event::Reset { .. }).then_some(()));
    shell(&mut machine);
    assert_eq!(machine.sh("cat /sys/block/vdb/serial /sys/block/vdb/size"), "data393216");
    assert_eq!(machine.sh("head -c 14 /dev/vdb"), "from the guest");

    // Several at once, and one after the other in the same place.
    let more = file(8);
    let id = |number: u32| format!("more{number}");
    for round in 0..3 {
        for number in 0..4 {
            attach_disk(&mut machine, &id(number), &more);
        }
        until(&mut machine, "test -b /dev/vdf");
        for number in 0..4 {
            machine.request("DELETE", &format!("/machine/disks/{}", id(number)), "");
            wait_detached(&mut machine, &id(number));
        }
        until(&mut machine, "! test -e /sys/block/vdc");
        assert_eq!(machine.sh("ls /sys/block | tr '\\n' ' '").trim(), "vda vdb", "round {round}");
    }
    machine.request("DELETE", "/machine/disks/data", "");
    wait_detached(&mut machine, "data");
    until(&mut machine, "! test -e /sys/block/vdb");
    assert_eq!(
        serde_json::from_str::<Disks>(&machine.request("GET", "/machine/disks", "")).unwrap().disks.len(),
        1
    );
    assert!(!machine.sh("dmesg").contains("BUG:"));
    power_off(machine);
}

#[test]
#[ignore = "boots Linux"]
fn what_a_guest_boots_from_stays_and_what_it_ignores_is_forced() {
    let mut machine = ready(Plan::boot(&place::image("minimal.raw")));
    let refused = machine.refused("DELETE", "/machine/disks/block0?force=true", "");
    assert!(refused.contains("the machine boots from it"), "{refused}");
    let data = file(64);
    attach_disk(&mut machine, "data", &data);
    until(&mut machine, "test -b /dev/vdb");
    machine.request("DELETE", "/machine/disks/data?force=true", "");
    wait_detached(&mut machine, "data");
    // Linux waits for ever for what it still wants of such a disk; all else goes on.
    assert_eq!(machine.sh("echo goes on"), "goes on");
    machine.power(PowerAction::PowerOff);
    assert_eq!(machine.end(), 0);
}

#[test]
#[ignore = "boots Linux"]
fn an_interface_comes_and_goes() {
    const TAP: &str = "hotplug0";
    let _tap = Tap::make(TAP, "10.98.0.1", &[]);
    let mut machine = ready(Plan::boot(&place::image("minimal.raw")));
    for round in 0..2 {
        let tap = ec2vmm_host::tap::open(TAP, 1).unwrap().queues.remove(0);
        let body = r#"{"id":"eni-1","mac":[2,0,0,0,0,9]}"#;
        let answer = send(&machine, "/machine/nets", body, &[tap.as_fd()]);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        drop(tap);
        until(&mut machine, "grep -l 02:00:00:00:00:09 /sys/class/net/*/address");
        let name = machine.sh("grep -l 02:00:00:00:00:09 /sys/class/net/*/address | cut -d/ -f5");
        machine.sh(&format!("ip addr add 10.98.0.2/24 dev {name} && ip link set {name} up"));
        until(&mut machine, "ping -c 1 -W 5 10.98.0.1 >/dev/null");
        machine.request("DELETE", "/machine/nets/eni-1", "");
        wait_detached(&mut machine, "eni-1");
        until(&mut machine, &format!("! test -e /sys/class/net/{name}"));
        assert_eq!(machine.request("GET", "/machine/nets", "").trim(), r#"{"nets":[]}"#, "round {round}");
    }
    power_off(machine);
}

#[test]
#[ignore = "boots Linux"]
fn a_paused_guest_stands_still_and_its_watchdog_stays_quiet() {
    let mut machine =
        ready(Plan::boot(&place::image("minimal.raw")).args(["--cpus", "2", "--memory", "512M"]));
    machine.sh("(while :; do echo tick; usleep 200000; done) >/dev/ttyS0 & echo $! >/tmp/ticker");
    machine.wait_for("tick");
    machine.request("PUT", "/machine/pause", "");
    machine.wait_for_event(|event| matches!(event, Event::Paused { .. }).then_some(()));
    assert_eq!(machine.view().state, State::Paused);
    let exits = |machine: &Machine| machine.request("GET", "/metrics", "");
    let vcpus = |metrics: String| {
        let metrics: ec2vmm_vmm_api::control::Metrics = serde_json::from_str(&metrics).unwrap();
        let mut counters = metrics.devices["vcpu"].clone();
        counters.remove("watch_rounds");
        counters
    };
    let before = vcpus(exits(&machine));
    // Longer than a soft lockup takes to be told of: 20 s of the watchdog's default threshold and more.
    std::thread::sleep(std::time::Duration::from_secs(25));
    assert_eq!(vcpus(exits(&machine)), before);
    machine.request("PUT", "/machine/resume", "");
    machine.wait_for_event(|event| matches!(event, Event::Resumed { .. }).then_some(()));
    machine.wait_for("tick");
    machine.wait_for("tick");
    assert!(!machine.sh("dmesg").contains("lockup"), "the watchdog barked");
    machine.sh("kill $(cat /tmp/ticker)");
    machine.power(PowerAction::PowerButton);
    assert_eq!(machine.end(), 0);
}
