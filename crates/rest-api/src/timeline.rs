//! How long each step of a start took.

use ec2vmm_model::Time;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the last start of an instance went: from the request to running.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Timeline {
    /// The instance.
    pub instance_id: String,
    /// Which of its starts: counted up, with gaps.
    pub generation: u64,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub requested: Time,
    /// The steps that are done, in order.
    pub steps: Vec<TimelineStep>,
}

/// One step.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TimelineStep {
    /// What was done, such as `create volume`.
    pub name: String,
    /// When it began: microseconds after [`Timeline::requested`].
    pub began_us: u64,
    /// How long it took, microseconds.
    pub took_us: u64,
}
