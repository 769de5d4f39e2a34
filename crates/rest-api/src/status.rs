//! What the daemon says of itself.

use std::collections::BTreeMap;

use ec2vmm_model::Time;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::InstanceState;

/// What the daemon is and has.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Status {
    /// Its version.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// The host it works on.
    #[schema(example = "linux")]
    pub host: String,
    /// The daemon's process.
    pub pid: u32,
    /// When it started.
    #[schema(value_type = String, format = DateTime)]
    pub started: Time,
    /// The region that its instances are in.
    pub region: String,
    /// How many instances there are, by state.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub instances: BTreeMap<InstanceState, u64>,
    /// What there is to give, and what of it is given.
    pub capacity: Capacity,
}

/// What there is to give, and what of it is given.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Capacity {
    /// Virtual processors that may be given: the host's, times the overcommit ratio.
    pub vcpus: u64,
    /// Virtual processors that are given.
    pub vcpus_given: u64,
    /// Memory that may be given, MiB.
    pub memory_mib: u64,
    /// Memory that is given, MiB.
    pub memory_given_mib: u64,
}

/// Whether it works.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    #[schema(example = "ok")]
    pub status: String,
}
