//! A guest of three instructions that asks for a reset each time: what a reboot leaves behind would add up.

use std::{fs, path::Path};

use ec2vmm_vmm_api::Event;

use crate::{
    elf::elf,
    machine::{Machine, Plan},
};

/// `mov dx, 0xcf9; mov al, 6; out dx, al; hlt`
const RESET: [u8; 8] = [0x66, 0xba, 0xf9, 0x0c, 0xb0, 6, 0xee, 0xf4];

#[test]
#[ignore = "needs a KVM that is not emulated"]
fn a_thousand_reboots_leave_nothing_behind() {
    let plan = Plan::new(["--json", "--memory", "64M", "--timeout", "1h", "--kernel"]);
    let kernel = plan.path("reset");
    fs::write(&kernel, elf(&RESET)).unwrap();
    let mut machine = plan.arg(kernel).start();
    let reboots: usize =
        std::env::var("EC2VMM_TEST_REBOOTS").map_or(1000, |text| text.parse().expect("a number"));
    let early = reboot(&mut machine, reboots / 10);
    let late = reboot(&mut machine, reboots - reboots / 10);
    assert!(late.descriptors <= early.descriptors + 8, "{late:?} held, {early:?} before");
    assert!(late.threads <= early.threads + 2, "{late:?} held, {early:?} before");
    assert!(late.kib <= early.kib + 128, "{late:?} held, {early:?} before");
}

/// What the machine process holds.
#[derive(Debug)]
struct Held {
    kib: u64,
    descriptors: usize,
    threads: usize,
}

/// So many reboots, and what is held at most after the last twenty of them: all of it moves while a machine
/// is taken down and set up again.
fn reboot(machine: &mut Machine, times: usize) -> Held {
    let mut most = Held { kib: 0, descriptors: 0, threads: 0 };
    for time in 0..times {
        machine.wait_for_event(|event| matches!(event, Event::Running { .. }).then_some(()));
        if time + 20 >= times {
            let process = machine.process().expect("it is the same process, and lives");
            let held = Held::of(Path::new(&format!("/proc/{process}")));
            most.kib = most.kib.max(held.kib);
            most.descriptors = most.descriptors.max(held.descriptors);
            most.threads = most.threads.max(held.threads);
        }
    }
    most
}

impl Held {
    fn of(process: &Path) -> Self {
        let count = |what: &str| fs::read_dir(process.join(what)).unwrap().count();
        // But for the guest's memory, of which the host gives huge pages when it has them; and for the program's
        // pages, which are dirty while it was just built.
        let maps = fs::read_to_string(process.join("smaps")).unwrap();
        let (mut counted, mut kib) = (false, 0);
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap();
            if let Some((start, end)) = first.split_once('-') {
                let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
                counted = end - start < GUEST_BYTES;
            } else if counted && first == "Anonymous:" {
                kib += words.next().unwrap().parse::<u64>().unwrap();
            }
        }
        Self { kib, descriptors: count("fd"), threads: count("task") }
    }
}

const GUEST_BYTES: u64 = 64 << 20;
