//! A cloud: its records, its host, and the tasks that keep the two in step.

use std::sync::Arc;

use ec2vmm_host::host::Host;
use ec2vmm_store::Store;

use crate::{Clock, Config, Error};

/// A cloud. Copies are the same cloud.
#[derive(Clone)]
pub struct Cloud {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: Config,
}

impl Cloud {
    /// Takes over what is there: adopts the machines that run, goes on with what was begun, and removes
    /// what belongs to nobody. Call it on a Tokio runtime.
    ///
    /// # Errors
    /// The store or the host cannot be read.
    pub async fn start(
        store: Store,
        host: Arc<dyn Host>,
        clock: Arc<dyn Clock>,
        config: Config,
    ) -> Result<Self, Error> {
        todo!()
    }

    /// Ends all tasks and refuses all requests from now on. Machines run on.
    pub async fn shut_down(&self) {
        todo!()
    }

    /// How it is configured.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Numbers for `/metrics`: instances by state, what is given away and what there is.
    pub fn figures(&self) -> Figures {
        todo!()
    }

    /// Copies the database while it is in use, to a file that must not be there.
    ///
    /// # Errors
    /// The file is there, or cannot be written.
    pub async fn backup(&self, file: std::path::PathBuf) -> Result<(), Error> {
        todo!()
    }
}

/// How much there is of everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Instances by state, terminated ones that are still shown among them.
    pub instances: Vec<(ec2vmm_model::lifecycle::State, u64)>,
    /// vCPUs that are given away.
    pub vcpus_given: u64,
    /// vCPUs that there are to give, overcommitted.
    pub vcpus: u64,
    /// Memory that is given away, MiB.
    pub memory_given_mib: u64,
    /// Memory that there is to give, MiB.
    pub memory_mib: u64,
    /// Reconcilers at work.
    pub reconcilers: u64,
    /// Steps that failed since the daemon's start.
    pub steps_failed: u64,
    /// Launches, starts, stops, reboots and terminations since the daemon's start.
    pub operations: Vec<(&'static str, u64)>,
}
