//! The minimal image, which boots in seconds: what any Linux finds in a machine.

use crate::{
    machine::{Machine, Plan},
    place,
};

/// Boots to a quiet root shell.
fn ready(plan: Plan) -> Machine {
    let mut machine = plan.start();
    machine.wait_for("minimal ready");
    machine.quiet_shell();
    machine
}

#[test]
#[ignore = "boots Linux"]
fn boots_and_powers_off() {
    let mut machine = ready(Plan::boot(&place::image("minimal.raw")));
    assert_eq!(machine.sh("nproc"), "2");
    machine.last_words("poweroff");
    assert_eq!(machine.end(), 0);
}
