//! `ec2vmm terminate`.

use crate::{
    Done,
    commands::change_state::{self, Targets, Verb},
    environment::Environment,
    waiting::Goal,
};

/// Terminate instances, for good
///
/// Their root volumes go with them, unless those are to stay. --wait stays until they are terminated.
#[derive(Debug, clap::Args)]
pub(crate) struct Terminate {
    #[command(flatten)]
    targets: Targets,
}

pub(crate) fn run(args: &Terminate, environment: &Environment) -> Done {
    let verb = Verb { name: "terminate", goal: Goal::Terminated, repeatable: true };
    change_state::run(&args.targets, verb, false, environment)
}
