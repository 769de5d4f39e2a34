//! Networks: so far, one default network with one range of addresses.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::ids::{SubnetId, VpcId};

/// A network, as the store keeps it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Network {
    /// Its id.
    pub vpc: VpcId,
    /// The id of its one range.
    pub subnet: SubnetId,
    /// The range's first address.
    pub base: Ipv4Addr,
    /// Length of the range's prefix, 16 to 28.
    pub prefix: u8,
}
