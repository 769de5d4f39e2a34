//! Private addresses: whose each is, for the instance's life.

use std::net::Ipv4Addr;

use ec2vmm_model::{
    ids::{InstanceId, VpcId},
    instances::Interface,
};
use ec2vmm_store::Record;
use serde::{Deserialize, Serialize};

/// An address that is somebody's, as the store keeps it: no two records have one key.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Lease {
    vpc: VpcId,
    address: Ipv4Addr,
    instance: InstanceId,
}

impl Lease {
    pub(crate) fn new(interface: &Interface, instance: &InstanceId) -> Self {
        Self { vpc: interface.vpc.clone(), address: interface.address, instance: instance.clone() }
    }

    pub(crate) fn key_of(interface: &Interface) -> String {
        format!("{}/{:08x}", interface.vpc, u32::from(interface.address))
    }
}

impl Record for Lease {
    const KIND: &'static str = "address";

    fn key(&self) -> String {
        format!("{}/{:08x}", self.vpc, u32::from(self.address))
    }
}
