//! The default network: made once, and never changed while there are instances in it.

use std::net::Ipv4Addr;

use ec2vmm_host::host::NetworkPlan;
use ec2vmm_model::{
    Instance,
    ids::{SubnetId, VpcId},
    networks::Network,
};
use ec2vmm_store::{Expect, Keys, Store};

use crate::{Error, random};

/// The network that there is, or a new one. One that nobody is in follows the configuration.
pub(crate) fn ensure(store: &Store, base: Ipv4Addr, prefix: u8) -> Result<Network, Error> {
    let network = store.transact(|transaction| -> Result<Network, ec2vmm_store::Error> {
        let present = transaction.range::<Network>(&Keys::all().limit(1))?.pop();
        if let Some(present) = &present
            && ((present.base, present.prefix) == (base, prefix)
                || !transaction.range::<Instance>(&Keys::all().limit(1))?.is_empty())
        {
            return Ok((*present.record).clone());
        }
        if let Some(unused) = present {
            transaction.delete::<Network>(unused.vpc.as_str(), Expect::Version(unused.version))?;
        }
        let network = Network {
            vpc: VpcId::from_random(random()),
            subnet: SubnetId::from_random(random()),
            base,
            prefix,
        };
        transaction.put(network.clone(), Expect::Absent)?;
        Ok(network)
    })?;
    if (network.base, network.prefix) != (base, prefix) {
        tracing::warn!(
            configured = %format_args!("{base}/{prefix}"),
            kept = %format_args!("{}/{}", network.base, network.prefix),
            "the network keeps its range while there are instances in it"
        );
    }
    Ok(network)
}

pub(crate) fn plan(network: &Network) -> NetworkPlan {
    NetworkPlan { vpc: network.vpc.clone(), base: network.base, prefix: network.prefix }
}
