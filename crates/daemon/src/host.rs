//! The host that machines run on, as the command line has it.

use std::{path::Path, sync::Arc};

use ec2vmm_host::{
    host::Host,
    simulated::{Settings, Simulated},
};

use crate::{
    args::{Args, HostKind},
    refusal::Refusal,
};

/// What can be seen to be missing before anything is touched.
pub(crate) fn check(kind: HostKind) -> Result<(), Refusal> {
    match kind {
        HostKind::Simulated => Ok(()),
        HostKind::Linux if !rustix::process::geteuid().is_root() => Err(Refusal::NotRoot),
        HostKind::Linux if !Path::new(CGROUP2_CONTROLLERS).exists() => {
            Err(Refusal::NoCgroup2 { path: CGROUP2.into() })
        }
        HostKind::Linux => Ok(()),
    }
}

/// The host.
pub(crate) async fn open(args: &Args) -> Result<Arc<dyn Host>, Refusal> {
    match args.host {
        HostKind::Simulated => Ok(Arc::new(Simulated::new(Settings::default()))),
        HostKind::Linux => todo!(),
    }
}

/// Where cgroup v2 is mounted, by convention everywhere.
const CGROUP2: &str = "/sys/fs/cgroup";
/// Only there where it is version 2.
const CGROUP2_CONTROLLERS: &str = "/sys/fs/cgroup/cgroup.controllers";
