//! `ec2vmm start`.

use crate::{
    Done,
    commands::change_state::{self, Targets, Verb},
    environment::Environment,
    waiting::Goal,
};

/// Start instances that were stopped
///
/// They keep their disks, addresses and tags; what was in memory is gone. --wait stays until they run.
#[derive(Debug, clap::Args)]
pub(crate) struct Start {
    #[command(flatten)]
    targets: Targets,
}

pub(crate) fn run(args: &Start, environment: &Environment) -> Done {
    let verb = Verb { name: "start", goal: Goal::Started, repeatable: true };
    change_state::run(&args.targets, verb, false, environment)
}
