//! `ec2vmm stop`.

use crate::{
    Done,
    commands::change_state::{self, Targets, Verb},
    environment::Environment,
    waiting::Goal,
};

/// Stop instances, as with the power button
///
/// The guest shuts down by itself; if it has not after a while, the power is cut. --wait stays until they are
/// stopped.
#[derive(Debug, clap::Args)]
pub(crate) struct Stop {
    /// Cut the power, and do not ask the guest
    #[arg(long, short)]
    force: bool,
    #[command(flatten)]
    targets: Targets,
}

pub(crate) fn run(args: &Stop, environment: &Environment) -> Done {
    let verb = Verb { name: "stop", goal: Goal::Stopped, repeatable: true };
    change_state::run(&args.targets, verb, args.force, environment)
}
