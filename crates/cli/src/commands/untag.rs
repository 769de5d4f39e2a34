//! `ec2vmm untag`.

use std::process::ExitCode;

use clap_complete::ArgValueCompleter;
use hyper::Method;

use super::tag::resource;
use crate::{Done, client::Call, complete, connection::Connection, environment::Environment};

/// Take tags from an instance, or another resource
#[derive(Debug, clap::Args)]
pub(crate) struct UntagArgs {
    /// Instance (its id, the beginning of its id, or its Name tag), or the id of an image, a volume or a key
    /// pair
    #[arg(value_name = "ID", add = ArgValueCompleter::new(complete::instances))]
    id: String,
    /// Keys of the tags to remove; those that are not there are no error
    #[arg(value_name = "KEY", required = true)]
    keys: Vec<String>,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &UntagArgs, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let call = Call::new(Method::DELETE, &["v1", "tags", &resource(&client, &args.id)?]);
    client.tell(&args.keys.iter().fold(call, |call, key| call.with("key", key)))?;
    Ok(ExitCode::SUCCESS)
}
