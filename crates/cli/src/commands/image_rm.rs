//! `ec2vmm image rm`.

use clap_complete::ArgValueCompleter;

use super::remove;
use crate::{Done, complete, connection::Connection, environment::Environment};

/// Deregister images
///
/// The files stay, and so do instances that were launched from them.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageRm {
    /// Names or ids of images
    #[arg(value_name = "IMAGE", required = true, add = ArgValueCompleter::new(complete::images))]
    names: Vec<String>,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &ImageRm, environment: &Environment) -> Done {
    remove::all(&args.connection.client(environment)?, "images", &args.names)
}
