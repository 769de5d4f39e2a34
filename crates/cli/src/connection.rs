//! How commands find the daemon.

use std::path::{Path, PathBuf};

use clap::ValueHint;

use crate::{
    client::{Client, Error},
    environment::Environment,
};

/// Which daemon.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Connection {
    /// The daemon's socket [env: EC2VMM_SOCKET] [default: /run/ec2vmm/ec2vmmd.sock]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = "Daemon")]
    pub(crate) socket: Option<PathBuf>,
}

impl Connection {
    /// A client for it.
    pub(crate) fn client(&self, environment: &Environment) -> Result<Client, Error> {
        let usual = Path::new(ec2vmm_rest_api::SOCKET_PATH);
        Client::new(self.socket.as_deref().or(environment.socket.as_deref()).unwrap_or(usual))
    }
}
