//! `ec2vmm key rm`.

use clap_complete::ArgValueCompleter;

use super::remove;
use crate::{Done, complete, connection::Connection, environment::Environment};

/// Delete key pairs
///
/// Instances that were launched with one keep it.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyRm {
    /// Names or ids of key pairs
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(complete::key_pairs))]
    names: Vec<String>,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &KeyRm, environment: &Environment) -> Done {
    remove::all(&args.connection.client(environment)?, "key-pairs", &args.names)
}
