//! What the same use would have cost on AWS, on demand.

use std::collections::BTreeMap;

use ec2vmm_model::Time;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// What to count.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, PartialEq, Serialize)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct CostQuery {
    /// Only what was used from here on. Without it, from the first day.
    #[param(value_type = String, format = DateTime, nullable = false, required = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Time>,
    /// Only what was used before. Without it, or if it is yet to come: now.
    #[param(value_type = String, format = DateTime, nullable = false, required = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Time>,
    /// Only this instance and its volumes.
    #[param(pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
}

/// What the same use would have cost on AWS: Linux, on demand, list price, without tax.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct CostReport {
    /// From when was counted; absent: from the first day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime)]
    pub from: Option<Time>,
    /// Up to when was counted.
    #[schema(value_type = String, format = DateTime)]
    pub to: Time,
    /// Whose prices.
    #[schema(example = "us-east-1")]
    pub price_region: String,
    /// By instance id, terminated ones too.
    pub instances: Vec<InstanceCost>,
    /// By volume id, deleted ones too.
    pub volumes: Vec<VolumeCost>,
    /// Of all instances, USD.
    pub compute_usd: f64,
    /// Of all volumes, USD.
    pub storage_usd: f64,
    /// Everything, USD.
    pub total_usd: f64,
}

/// What an instance would have cost.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct InstanceCost {
    /// The instance.
    pub instance_id: String,
    /// Its instance type, the last one.
    pub instance_type: String,
    /// Its tags, while it is shown.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// How often it was started.
    pub starts: u64,
    /// Time that it ran, seconds.
    pub running_seconds: f64,
    /// Time that is charged, seconds: at least 60 for each start.
    pub billed_seconds: f64,
    /// For that time, USD; absent if AWS publishes no price of the type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub compute_usd: Option<f64>,
    /// For CPU credits taken beyond those earned, USD.
    pub cpu_credits_usd: f64,
    /// For the volumes that were attached to it, USD.
    pub storage_usd: f64,
    /// Together, USD.
    pub total_usd: f64,
}

/// What a volume would have cost.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct VolumeCost {
    /// The volume.
    pub volume_id: String,
    /// The instance whose cost it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub instance_id: Option<String>,
    /// Size, GiB.
    pub size_gib: u32,
    /// Time that it was there, seconds.
    pub seconds: f64,
    /// For that, USD.
    pub usd: f64,
}
