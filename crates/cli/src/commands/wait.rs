//! `ec2vmm wait`.

use clap_complete::ArgValueCompleter;
use ec2vmm_rest_api::InstanceList;

use crate::{
    Done, complete,
    connection::Connection,
    environment::Environment,
    names, output,
    value::duration::Span,
    waiting::{self, Goal},
};

/// Wait until instances are in a state
///
/// Ends with status 0 when all of them are, with 47 when one of them will not get there, with 124 when time
/// is up.
#[derive(Debug, clap::Args)]
pub(crate) struct Wait {
    /// Instances: ids, beginnings of ids, or Name tags
    #[arg(value_name = "ID", required = true, add = ArgValueCompleter::new(complete::instances))]
    instances: Vec<String>,
    /// Which state
    #[arg(long = "for", value_name = "STATE", default_value = "running")]
    goal: Goal,
    /// Wait at most so long: 30s, 2m, 1h30m
    #[arg(long, value_name = "TIME", default_value = "10m")]
    timeout: Span,
    /// Print the instances as they are then, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &Wait, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let ids = names::resolve_all(&client, &args.instances)?;
    let instances = waiting::wait(&client, &ids, args.goal, Some(args.timeout), environment.plain)?;
    match args.json {
        true => output::print_json(&InstanceList { instances, next_token: None }),
        false => Ok(std::process::ExitCode::SUCCESS),
    }
}
