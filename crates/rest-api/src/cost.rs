//! What the same use would have cost on AWS, on demand.

use std::collections::BTreeMap;

use ec2vmm_model::{Time, prices::Usd};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::InstanceState;

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
    /// By instance id, those long terminated too.
    pub instances: Vec<InstanceCost>,
    /// What is counted to no instance, such as volumes that outlived theirs. Absent where one instance
    /// was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub others: Option<Cost>,
    /// The sum.
    pub total: Cost,
}

/// What an instance would have cost.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct InstanceCost {
    /// The instance.
    pub instance_id: String,
    /// Its instance type, while the instance is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub instance_type: Option<String>,
    /// Its state, while the instance is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub state: Option<InstanceState>,
    /// Its tags, while the instance is shown.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// What it would have cost.
    pub cost: Cost,
}

/// What something would have cost, and for what.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Cost {
    /// For running, USD to the billionth.
    #[schema(value_type = String, pattern = r"^[0-9]+\.[0-9]{9}$", example = "0.010400000")]
    pub compute_usd: Usd,
    /// For CPU beyond what burstable instances earned, USD to the billionth.
    #[schema(value_type = String, pattern = r"^[0-9]+\.[0-9]{9}$", example = "0.010400000")]
    pub cpu_credits_usd: Usd,
    /// For volumes, USD to the billionth.
    #[schema(value_type = String, pattern = r"^[0-9]+\.[0-9]{9}$", example = "0.010400000")]
    pub storage_usd: Usd,
    /// For public addresses, USD to the billionth.
    #[schema(value_type = String, pattern = r"^[0-9]+\.[0-9]{9}$", example = "0.010400000")]
    pub addresses_usd: Usd,
    /// Together, USD to the billionth.
    #[schema(value_type = String, pattern = r"^[0-9]+\.[0-9]{9}$", example = "0.010400000")]
    pub total_usd: Usd,
    /// What an hour costs as things are, USD to the billionth.
    #[schema(value_type = String, pattern = r"^[0-9]+\.[0-9]{9}$", example = "0.010400000")]
    pub usd_per_hour: Usd,
    /// How long it ran, seconds, as it was. Charged are at least 60 for each start.
    pub running_seconds: f64,
    /// How often it was started.
    pub starts: u64,
    /// Intervals that are in no sum, because AWS publishes no price of the type.
    pub unpriced: u64,
}
