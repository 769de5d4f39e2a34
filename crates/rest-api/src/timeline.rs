//! How long each step of a start took.

use ec2vmm_model::Time;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::InstanceState;

/// The starts of an instance, the last ones, oldest first.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Timeline {
    /// The instance.
    pub instance_id: String,
    /// Its starts.
    pub starts: Vec<StartRecord>,
}

/// One start: from the request to running.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct StartRecord {
    /// Which start of this instance: counted up.
    pub generation: u64,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub requested: Time,
    /// The steps that are done, in order.
    pub steps: Vec<TimelineStep>,
    /// What it came to; absent while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub outcome: Option<InstanceState>,
}

/// One step.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TimelineStep {
    /// What was done, such as `create volume`.
    pub name: String,
    /// When it began: microseconds after [`StartRecord::requested`].
    pub began_us: u64,
    /// How long it took, microseconds.
    pub took_us: u64,
}
