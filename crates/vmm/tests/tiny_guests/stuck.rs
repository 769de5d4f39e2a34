//! vCPUs that hang are told of; others are not.

use std::io::Write;

use ec2vmm_vmm_api::{Event, control::Metrics};

use crate::{
    ask, get, guests,
    machine::{self, Machine, elf},
};

fn watched(guest: &[u8]) -> Machine {
    let mut config = machine::config();
    config.stuck_after_s = 1;
    let mut machine = Machine::start_with(&config, &elf(guest));
    machine.wait_for(|event| matches!(event, Event::Running { .. }));
    machine
}

fn rounds(machine: &Machine) -> u64 {
    get::<Metrics>(machine, "/metrics").devices["vcpu"]["watch_rounds"]
}

#[test]
fn a_vcpu_that_is_busy_with_interrupts_off_is_stuck() {
    let mut machine = watched(guests::spin());
    let stuck = machine.wait_for(|event| matches!(event, Event::Stuck { .. }));
    let Event::Stuck { vcpu, rip, .. } = stuck else { unreachable!() };
    // Where the guest was loaded.
    assert_eq!((vcpu, rip), (0, 0x10_0000));
    // It is told once, and the machine goes on.
    let before = rounds(&machine);
    while rounds(&machine) < before + 4 {}
    ask(&machine, "PUT", "/machine/pause");
    assert!(matches!(machine.event(), Some(Event::Paused { .. })));
}

#[test]
fn one_that_takes_interrupts_again_has_recovered() {
    let mut machine = watched(guests::stuck_until_input());
    machine.wait_for(|event| matches!(event, Event::Stuck { vcpu: 0, .. }));
    machine.console.write_all(b"x").unwrap();
    machine.wait_for(|event| matches!(event, Event::Recovered { vcpu: 0, .. }));
}

#[test]
fn neither_the_idle_nor_the_busy_nor_the_halted_are_stuck() {
    // One that halts with interrupts off is how Linux leaves a processor for good.
    for guest in [guests::busy(), guests::idle(), guests::wait_with_interrupts_on()] {
        let mut machine = watched(guest);
        // A second has four rounds.
        while rounds(&machine) < 10 {}
        ask(&machine, "PUT", "/machine/pause");
        assert!(matches!(machine.event(), Some(Event::Paused { .. })));
    }
}
