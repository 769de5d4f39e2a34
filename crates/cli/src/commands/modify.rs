//! `ec2vmm modify`.

use std::path::PathBuf;

use base64::{Engine, prelude::BASE64_STANDARD};
use clap::ValueHint;
use clap_complete::ArgValueCompleter;
use ec2vmm_rest_api::{Instance, InstanceChange};
use ec2vmm_vmm_api::FailureKind;
use hyper::Method;

use crate::{
    Done,
    client::Call,
    commands::{launch::USER_DATA_BYTES_MAX, ls},
    complete,
    connection::Connection,
    environment::Environment,
    error::Error,
    files, names,
    output::{self, screen::Screen},
    value::settings::{CreditSetting, ShutdownSetting, Switch},
};

/// Change attributes of an instance
///
/// All of them at once, or none. Type and user data change only while it is stopped.
#[derive(Debug, clap::Args)]
pub(crate) struct Modify {
    /// Instance: its id, the beginning of its id, or its Name tag
    #[arg(value_name = "ID", add = ArgValueCompleter::new(complete::instances))]
    instance: String,
    /// Another instance type
    #[arg(long = "type", value_name = "TYPE", add = ArgValueCompleter::new(complete::instance_types))]
    instance_type: Option<String>,
    /// Other user data; an empty file for none
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    user_data: Option<PathBuf>,
    /// Refuse to terminate it, or no longer
    #[arg(long, value_name = "on|off")]
    protect: Option<Switch>,
    /// Refuse to stop it, or no longer
    #[arg(long, value_name = "on|off")]
    protect_stop: Option<Switch>,
    /// What a power-off from inside means
    #[arg(long, value_name = "WHAT")]
    shutdown_behavior: Option<ShutdownSetting>,
    /// How CPU credits are counted; burstable types only
    #[arg(long, value_name = "MODE")]
    credits: Option<CreditSetting>,
    /// Print JSON and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &Modify, environment: &Environment) -> Done {
    let user_data = args.user_data.as_deref().map(|path| files::read(path, USER_DATA_BYTES_MAX, "user data"));
    let change = InstanceChange {
        instance_type: args.instance_type.clone(),
        user_data: user_data.transpose()?.map(|data| BASE64_STANDARD.encode(data)),
        disable_api_termination: args.protect.map(Switch::is_on),
        disable_api_stop: args.protect_stop.map(Switch::is_on),
        instance_initiated_shutdown_behavior: args.shutdown_behavior.map(Into::into),
        credit_mode: args.credits.map(Into::into),
    };
    if change == InstanceChange::default() {
        return Err(Error::new(FailureKind::Usage, "nothing to change")
            .hint("`ec2vmm modify --help` lists what can be changed"));
    }
    let client = args.connection.client(environment)?;
    let id = names::resolve(&client, &args.instance)?;
    let call = Call::new(Method::PATCH, &["v1", "instances", &id]).json(&change)?;
    let instance: Instance = client.insist(&call)?;
    match args.json {
        true => output::print_json(&instance),
        false => output::print(ls::table(&[instance], Screen::stdout(environment.plain))),
    }
}
