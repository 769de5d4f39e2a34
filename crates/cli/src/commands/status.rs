//! `ec2vmm status`.

use ec2vmm_rest_api::Status;

use crate::{
    Done,
    client::Call,
    clock::now,
    connection::Connection,
    environment::Environment,
    output::{self, bytes, facts, span::span, state_name},
};

/// Show what the daemon is and has
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Print JSON and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &StatusArgs, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let status: Status = client.ask(&Call::get(&["v1", "status"]))?;
    match args.json {
        true => output::print_json(&status),
        false => output::print(facts(&describe(&status))),
    }
}

fn describe(status: &Status) -> Vec<(&'static str, String)> {
    let capacity = status.capacity;
    let counts = status.instances.iter().filter(|(_, count)| **count > 0);
    let instances: Vec<String> =
        counts.map(|(state, count)| format!("{count} {}", state_name(*state))).collect();
    let mebibytes = |count: u64| bytes(count.saturating_mul(1 << 20));
    vec![
        ("daemon", format!("ec2vmmd {}, process {}", status.version, status.pid)),
        ("up", format!("{}, since {}", span(now().ms_since(status.started)), status.started)),
        ("host", status.host.clone()),
        ("region", status.region.clone()),
        ("instances", if instances.is_empty() { "none".to_owned() } else { instances.join(", ") }),
        ("vcpus", format!("{} of {} given", capacity.vcpus_given, capacity.vcpus)),
        (
            "memory",
            format!("{} of {} given", mebibytes(capacity.memory_given_mib), mebibytes(capacity.memory_mib)),
        ),
    ]
}
