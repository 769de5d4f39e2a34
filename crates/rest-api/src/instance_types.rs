//! Instance types.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Which instance types, and which page of them.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, PartialEq, Serialize)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct InstanceTypeQuery {
    /// Only these names. May be repeated. One that does not exist is an error. Not together with
    /// `max_results` or `next_token`.
    #[param(style = Form, explode, max_items = 1000, nullable = false)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub name: Vec<String>,
    /// As in [`ListQuery::filter`](crate::ListQuery::filter).
    #[param(style = Form, explode, max_items = 50, nullable = false, example = json!(["burstable-performance-supported=true"]))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<String>,
    /// Only what can be launched here: x86-64, and no larger than the host.
    pub runnable: bool,
    /// At most so many, 5 to 1,000. Without it, 1,000.
    #[param(minimum = 5, maximum = 1000, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_results: Option<u32>,
    /// Where the page before ended: its `next_token`.
    #[param(max_length = 512, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_token: Option<String>,
}

/// One page of instance types.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct InstanceTypeList {
    /// The types, in the catalogue's order.
    pub instance_types: Vec<InstanceType>,
    /// Where to go on; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next_token: Option<String>,
}

/// What AWS says of one instance type.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct InstanceType {
    /// Such as `t3.micro`.
    pub name: String,
    /// What its processors run.
    pub architecture: Architecture,
    /// It can be launched here when nothing else runs: x86-64, and no larger than the host.
    pub runnable: bool,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Network speed in EC2's words, such as `Up to 5 Gigabit`.
    pub network_performance: String,
    /// Network speed that lasts, 10^9 bit/s, where AWS publishes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub network_baseline_gbps: Option<f64>,
    /// Earns and spends CPU credits.
    pub burstable: bool,
    /// AWS does not call it previous generation.
    pub current_generation: bool,
    /// GPU models, where it has some on AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub gpu: Option<String>,
    /// Size of the local disks together, GB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub instance_store_gb: Option<u64>,
    /// Linux on demand in us-east-1, USD per hour, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub usd_per_hour: Option<f64>,
}

/// What processors run.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub enum Architecture {
    /// Intel and AMD, 64 bits.
    #[serde(rename = "x86_64")]
    X86_64,
    /// Graviton.
    #[serde(rename = "arm64")]
    Arm64,
    /// An Apple Macintosh with an Intel processor.
    #[serde(rename = "x86_64_mac")]
    X86_64Mac,
    /// An Apple Macintosh with an ARM processor.
    #[serde(rename = "arm64_mac")]
    Arm64Mac,
}
