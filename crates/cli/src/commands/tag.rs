//! `ec2vmm tag`.

use std::process::ExitCode;

use clap_complete::ArgValueCompleter;
use ec2vmm_rest_api::AddTagsRequest;

use crate::{
    Done,
    client::{Call, Client},
    complete,
    connection::Connection,
    environment::Environment,
    error::Error,
    names,
    value::tag::Tag,
};

/// Give an instance, or another resource, tags
#[derive(Debug, clap::Args)]
pub(crate) struct TagArgs {
    /// Instance (its id, the beginning of its id, or its Name tag), or the id of an image, a volume or a key
    /// pair
    #[arg(value_name = "ID", add = ArgValueCompleter::new(complete::instances))]
    id: String,
    /// Tags to add, or to give another value
    #[arg(value_name = "KEY=VALUE", required = true)]
    tags: Vec<Tag>,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &TagArgs, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let id = resource(&client, &args.id)?;
    let tags = args.tags.iter().map(|tag| (tag.key.clone(), tag.value.clone())).collect();
    client.tell(&Call::post(&["v1", "tags", &id]).json(&AddTagsRequest { tags })?)?;
    Ok(ExitCode::SUCCESS)
}

/// The id of what has tags.
pub(super) fn resource(client: &Client, given: &str) -> Result<String, Error> {
    match OTHER_PREFIXES.iter().any(|prefix| given.starts_with(prefix)) {
        true => Ok(given.to_owned()),
        false => names::resolve(client, given),
    }
}

/// How the ids of everything but instances begin.
const OTHER_PREFIXES: [&str; 3] = ["ami-", "vol-", "key-"];
