//! `ec2vmm reboot`.

use crate::{
    Done,
    commands::change_state::{self, Targets, Verb},
    environment::Environment,
    waiting::Goal,
};

/// Reboot instances
///
/// The guest is asked to shut down, and reset if it takes too long. Same machine process, addresses and disks. --wait
/// stays until it has been reset.
#[derive(Debug, clap::Args)]
pub(crate) struct Reboot {
    #[command(flatten)]
    targets: Targets,
}

pub(crate) fn run(args: &Reboot, environment: &Environment) -> Done {
    let verb = Verb { name: "reboot", goal: Goal::Rebooted, repeatable: false };
    change_state::run(&args.targets, verb, false, environment)
}
