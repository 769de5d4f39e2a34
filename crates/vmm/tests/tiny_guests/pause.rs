//! A machine that is paused stands still.

use std::io::{Read, Write};

use ec2vmm_vmm_api::{
    Event,
    control::{self, State},
};

use crate::{
    ask, get, guests,
    machine::{self, Machine, elf},
    put_power,
};

pub(crate) fn put(machine: &Machine, path: &str) {
    let answer = ask(machine, "PUT", path);
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

fn state(machine: &Machine) -> State {
    get::<control::Machine>(machine, "/machine").state
}

fn exits(machine: &Machine) -> u64 {
    get::<control::Metrics>(machine, "/metrics").devices["vcpu"]["port_exits"]
}

#[test]
fn a_guest_makes_no_progress_while_it_is_paused() {
    let mut config = machine::config();
    // The second is never started by the guest, and is paused all the same.
    config.cpus = 2;
    let mut machine = Machine::start_with(&config, &elf(guests::flood()));
    machine.wait_for(|event| matches!(event, Event::Running { .. }));
    while exits(&machine) == 0 {}
    for _ in 0..20 {
        put(&machine, "/machine/pause");
        assert_eq!(state(&machine), State::Paused);
        let before = exits(&machine);
        // Again, which changes nothing.
        put(&machine, "/machine/pause");
        for _ in 0..20 {
            assert_eq!(exits(&machine), before);
        }
        put(&machine, "/machine/resume");
        put(&machine, "/machine/resume");
        assert_eq!(state(&machine), State::Running);
        while exits(&machine) == before {}
        assert!(matches!(machine.event(), Some(Event::Paused { .. })));
        assert!(matches!(machine.event(), Some(Event::Resumed { .. })));
    }
}

#[test]
fn what_comes_while_it_is_paused_is_there_when_it_goes_on() {
    let mut machine = Machine::start(guests::echo());
    machine.console.write_all(b"a").unwrap();
    machine.console.read_exact(&mut [0]).unwrap();
    put(&machine, "/machine/pause");
    machine.console.write_all(b"bcq").unwrap();
    put(&machine, "/machine/resume");
    let (status, output) = machine.end();
    assert_eq!((status.code(), output.as_slice()), (Some(0), b"bcq".as_slice()));
}

#[test]
fn guests_that_never_leave_their_processor_are_paused_too() {
    for guest in [guests::idle(), guests::spin()] {
        let mut machine = Machine::start(guest);
        machine.wait_for(|event| matches!(event, Event::Running { .. }));
        for verb in ["pause", "resume", "pause"] {
            put(&machine, &format!("/machine/{verb}"));
        }
        assert_eq!(state(&machine), State::Paused);
        assert!(put_power(&machine, "power_off").starts_with("HTTP/1.1 204"));
        assert_eq!(machine.end().0.code(), Some(0));
    }
}

#[test]
fn a_reset_ends_the_pause() {
    let mut machine = Machine::start(guests::wait_for_power_button());
    machine.wait_for(|event| matches!(event, Event::Running { .. }));
    put(&machine, "/machine/pause");
    assert!(put_power(&machine, "reset").starts_with("HTTP/1.1 204"));
    machine.wait_for(|event| matches!(event, Event::Running { .. }));
    assert_eq!(state(&machine), State::Running);
    put(&machine, "/machine/pause");
    // It is pressed, and felt later.
    assert!(put_power(&machine, "power_button").starts_with("HTTP/1.1 204"));
    assert_eq!(state(&machine), State::Paused);
    put(&machine, "/machine/resume");
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn one_that_reboots_for_ever_is_paused_or_says_why_not() {
    let machine = Machine::start(guests::reset());
    let mut paused = 0;
    while paused < 5 {
        let answer = ask(&machine, "PUT", "/machine/pause");
        if answer.starts_with("HTTP/1.1 204") {
            assert_eq!(state(&machine), State::Paused);
            put(&machine, "/machine/resume");
            paused += 1;
        } else {
            assert!(answer.starts_with("HTTP/1.1 409"), "{answer}");
        }
    }
}
