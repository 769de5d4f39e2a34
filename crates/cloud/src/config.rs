//! How a cloud shall be.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use crate::Error;

/// How a cloud shall be.
#[derive(Clone)]
pub struct Config {
    /// The name space of all records, such as `us-east-1`.
    pub region: String,
    /// The one account, twelve digits.
    pub account: String,
    /// vCPUs that are given away for each processor of the host.
    pub cpu_overcommit: f64,
    /// Memory that is given away for each byte of the host's.
    pub memory_overcommit: f64,
    /// What a guest has to shut down after the button was pressed, before its power is cut or it is reset.
    pub stop_grace: Duration,
    /// After a reboot of the host, instances that were running are started again; else they are stopped.
    pub restart_on_boot: bool,
    /// First address of the default network. It cannot be changed once there are instances.
    pub network_base: Ipv4Addr,
    /// Length of the default network's prefix, 16 to 28.
    pub network_prefix: u8,
    /// How often the use of burstable instances is looked at.
    pub credits_every: Duration,
    /// How often what is too old is looked for.
    pub sweep_every: Duration,
    /// Most events that are remembered in all.
    pub events_max: usize,
    /// Where tests let the daemon die, or its disk fail.
    pub faults: Option<Arc<dyn Faults>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            region: "us-east-1".to_owned(),
            account: "000000000000".to_owned(),
            cpu_overcommit: 4.0,
            memory_overcommit: 1.0,
            stop_grace: Duration::from_secs(60),
            restart_on_boot: false,
            network_base: Ipv4Addr::new(172, 31, 0, 0),
            network_prefix: 16,
            credits_every: Duration::from_secs(10),
            sweep_every: Duration::from_secs(60),
            events_max: 20_000,
            faults: None,
        }
    }
}

impl Config {
    /// What of it makes no sense.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |message: String| Err(Error::InvalidValue { message, hint: None });
        let factor = |factor: f64| factor.is_finite() && (0.01..=1_000.0).contains(&factor);
        if !factor(self.cpu_overcommit) || !factor(self.memory_overcommit) {
            return invalid("an overcommit ratio is a number from 0.01 to 1000".to_owned());
        }
        if !(16..=28).contains(&self.network_prefix) {
            return invalid(format!("a network's prefix is 16 to 28 bits long, not {}", self.network_prefix));
        }
        let host_bits = u32::MAX >> self.network_prefix;
        if u32::from(self.network_base) & host_bits != 0 {
            let (base, prefix) = (self.network_base, self.network_prefix);
            return invalid(format!("{base}/{prefix} is no network: bits beyond the prefix are set"));
        }
        if self.credits_every.is_zero() || self.sweep_every.is_zero() {
            return invalid("an interval must not be zero".to_owned());
        }
        Ok(())
    }
}

/// What tests do at a commit. Without it, nothing is done.
#[async_trait::async_trait]
pub trait Faults: Send + Sync + 'static {
    /// Before a commit: what is given here is what the commit came to.
    async fn before_commit(&self) -> Result<(), ec2vmm_store::Error>;

    /// After a commit, before anybody knows of it.
    async fn after_commit(&self);
}
