//! Reboots in place, again and again: nothing of a run is left in the next one.
//!
//! `EC2VMM_REBOOTS` says how many; a KVM that emulates can hang for good where a VM is destroyed, so that
//! there are not many unless somebody asks for them.

use std::fs;

use ec2vmm_vmm_api::Event;

use crate::{guests, hostile, machine::Machine, memory::kib_beyond_the_guests};

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    kib: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn of(pid: u32) -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        // Others are the program's: private while no other machine runs, and dirty while it was just built.
        let kib = kib_beyond_the_guests(pid, &["Anonymous:"]);
        Self { kib, descriptors: count("fd"), threads: count("task") }
    }

    /// The most of each.
    fn most(self, other: Self) -> Self {
        Self {
            kib: self.kib.max(other.kib),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
        }
    }
}

/// What it held at most, over a few reboots: all of it moves while a VM is taken down and set up again.
fn most_held(machine: &mut Machine) -> Held {
    let pid = machine.process.id();
    let each = (0..LOOKS).map(|_| {
        machine.wait_for(|event| matches!(event, Event::Running { .. }));
        Held::of(pid)
    });
    each.reduce(Held::most).unwrap()
}

/// Reboots a machine as often as is asked for, or so often. It holds no more at the end than early on.
fn does_not_grow(mut machine: Machine, reboots: u64) {
    let reboots = std::env::var("EC2VMM_REBOOTS").map_or(reboots, |text| text.parse().expect("a number"));
    let early_on = (reboots / 10).max(LOOKS);
    for _ in 0..early_on {
        machine.wait_for(|event| matches!(event, Event::Reset { .. }));
    }
    let early = most_held(&mut machine);
    for _ in early_on + LOOKS..reboots {
        machine.wait_for(|event| matches!(event, Event::Reset { .. }));
    }
    let late = most_held(&mut machine);
    let Held { kib, descriptors, threads } = SLACK;
    assert!(late.kib <= early.kib + kib, "{late:?}, {early:?} before");
    assert!(late.descriptors <= early.descriptors + descriptors, "{late:?}, {early:?} before");
    assert!(late.threads <= early.threads + threads, "{late:?}, {early:?} before");
    assert!(machine.process.try_wait().unwrap().is_none());
}

#[test]
fn a_machine_that_reboots_for_ever_does_not_grow() {
    does_not_grow(Machine::start(guests::reset()), 200);
}

#[test]
fn nor_does_one_whose_devices_are_at_work_each_time() {
    does_not_grow(hostile::with_devices(&hostile::reboot_at_work()), 60);
}

/// Of what is held, so many are looked at.
const LOOKS: u64 = 20;
/// Less than one in every few reboots, so that whatever is left behind shows: what a look meets of a machine
/// that is being taken down and set up is chance.
const SLACK: Held = Held { kib: 128, descriptors: 8, threads: 2 };
