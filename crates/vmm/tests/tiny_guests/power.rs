//! Buttons, and guests that are asked to reboot.

use ec2vmm_vmm_api::{
    Event, Exit,
    control::{self, State},
};

use crate::{
    get, guests,
    machine::Machine,
    pause::put,
    put_power, put_power_request,
    snapshot::{Files, ask_for_snapshot},
};

fn start(guest: &[u8]) -> Machine {
    let mut machine = Machine::start(guest);
    machine.wait_for(|event| matches!(event, Event::Running { .. }));
    machine
}

fn ask_to_reboot(machine: &Machine, grace_ms: u64) {
    let answer = put_power_request(machine, &format!(r#"{{"action":"reboot","grace_ms":{grace_ms}}}"#));
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

fn reboots_once(machine: &mut Machine) {
    machine.wait_for(|event| matches!(event, Event::Reset { .. }));
    machine.wait_for(|event| matches!(event, Event::Running { .. }));
    assert_eq!(get::<control::Machine>(machine, "/machine").reboots, 1);
}

#[test]
fn the_power_button_reaches_the_guest() {
    let machine = start(guests::wait_for_power_button());
    assert!(put_power(&machine, "power_button").starts_with("HTTP/1.1 204"));
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn a_reset_from_outside_reboots() {
    let mut machine = start(guests::spin());
    assert!(put_power(&machine, "reset").starts_with("HTTP/1.1 204"));
    reboots_once(&mut machine);
}

#[test]
fn a_guest_that_is_asked_to_reboot_is_reset_where_it_would_power_off() {
    let mut machine = start(guests::wait_for_power_button());
    let pid = machine.process.id();
    assert!(put_power(&machine, "reboot").starts_with("HTTP/1.1 204"));
    reboots_once(&mut machine);
    assert_eq!(machine.process.id(), pid);
    // It was asked once: now the same is a power-off.
    assert!(put_power(&machine, "power_button").starts_with("HTTP/1.1 204"));
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn a_guest_that_does_not_hear_it_is_asked_again() {
    let mut machine = start(guests::wait_for_two_presses());
    ask_to_reboot(&machine, HOUR_MS);
    reboots_once(&mut machine);
}

#[test]
fn a_guest_that_takes_too_long_is_reset() {
    for guest in [guests::idle(), guests::spin()] {
        for grace_ms in [0, 1, 50] {
            let mut machine = start(guest);
            ask_to_reboot(&machine, grace_ms);
            reboots_once(&mut machine);
        }
    }
}

#[test]
fn who_asks_again_for_less_time_gives_less() {
    let mut machine = start(guests::idle());
    for grace_ms in [HOUR_MS, 50, HOUR_MS] {
        ask_to_reboot(&machine, grace_ms);
    }
    reboots_once(&mut machine);
}

#[test]
fn a_pause_takes_no_time_from_the_guest() {
    let mut machine = start(guests::idle());
    let uptime_ms = |machine: &Machine| get::<control::Machine>(machine, "/machine").uptime_ms;
    let asked_us = uptime_ms(&machine) * 1000;
    ask_to_reboot(&machine, 300);
    put(&machine, "/machine/pause");
    let Some(Event::Paused { us: paused_us }) = machine.event() else { panic!("it is paused") };
    while uptime_ms(&machine) * 1000 < asked_us + 400_000 {}
    put(&machine, "/machine/resume");
    let Some(Event::Resumed { us: resumed_us }) = machine.event() else { panic!("it goes on") };
    let Some(Event::Reset { us: reset_us }) = machine.event() else { panic!("it is reset") };
    let ran_us = paused_us - asked_us + reset_us - resumed_us;
    assert!(ran_us >= 300_000, "reset after {ran_us} us");
}

#[test]
fn a_stop_takes_the_place_of_a_reboot() {
    let machine = start(guests::wait_for_power_button());
    put(&machine, "/machine/pause");
    ask_to_reboot(&machine, HOUR_MS);
    assert!(put_power(&machine, "power_button").starts_with("HTTP/1.1 204"));
    put(&machine, "/machine/resume");
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn what_goes_wrong_on_the_way_is_told_as_ever() {
    let machine = start(guests::echo());
    ask_to_reboot(&machine, HOUR_MS);
    assert!(put_power(&machine, "power_off").starts_with("HTTP/1.1 204"));
    assert_eq!(machine.end().0.code(), Some(0));
    let mut machine = start(guests::idle());
    ask_to_reboot(&machine, HOUR_MS);
    machine.lifeline = None;
    assert_eq!(machine.end().0.code(), Some(Exit::Abandoned.code().into()));
}

/// Whoever went on from it would end where the guest was to be reset.
#[test]
fn there_is_no_snapshot_of_a_guest_that_is_asked_to_reboot() {
    let mut machine = start(guests::idle());
    ask_to_reboot(&machine, HOUR_MS);
    let files = Files::new();
    let answer = ask_for_snapshot(&machine, r#"{"kind":"full"}"#, &files);
    assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("asked to reboot"), "{answer}");
    assert_eq!(get::<control::Machine>(&machine, "/machine").state, State::Running);
    assert!(put_power(&machine, "reset").starts_with("HTTP/1.1 204"));
    reboots_once(&mut machine);
    let answer = ask_for_snapshot(&machine, r#"{"kind":"full"}"#, &files);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

const HOUR_MS: u64 = 60 * 60 * 1000;
