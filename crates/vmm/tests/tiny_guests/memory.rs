//! How much a machine process takes beyond its guest's memory.

use std::fs;

use ec2vmm_vmm_api::Event;

use crate::{guests, machine};

/// Pages of these kinds of a process in KiB, but for those of mappings for which huge pages were asked:
/// the guest's memory (Linux, Documentation/filesystems/proc.rst, "smaps").
pub(crate) fn kib_beyond_the_guests(pid: u32, kinds: &[&str]) -> u64 {
    let (mut sum, mut mapping) = (0, 0);
    for line in fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap().lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some(kind) if kinds.contains(&kind) => {
                mapping += words.next().unwrap().parse::<u64>().unwrap();
            }
            // The last line of a mapping.
            Some("VmFlags:") => {
                sum += if words.any(|flag| flag == "hg") { 0 } else { mapping };
                mapping = 0;
            }
            _ => {}
        }
    }
    sum
}

#[test]
fn a_machine_process_is_small_beyond_its_guest() {
    const BUDGET_KIB: u64 = 5 * 1024;
    // The program's pages are all machines' together, and this one's alone only where there is no other.
    let [_other, machine] = [(); 2].map(|()| {
        let mut machine = machine::Machine::start(guests::idle());
        machine.wait_for(|event| matches!(event, Event::Running { .. }));
        machine
    });
    let kib = kib_beyond_the_guests(machine.process.id(), &["Private_Clean:", "Private_Dirty:"]);
    assert!((1..=BUDGET_KIB).contains(&kib), "{kib} KiB beyond the guest's memory");
}
