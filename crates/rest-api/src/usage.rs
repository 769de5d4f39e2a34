//! What machines use: what `top` shows.

use ec2vmm_model::Time;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the running instances use.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct UsageList {
    /// By instance id.
    pub usage: Vec<Usage>,
}

/// What an instance has used since it was started. Counters: two samples make a rate.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Usage {
    /// The instance.
    pub instance_id: String,
    /// Name of its instance type.
    pub instance_type: String,
    /// Virtual processors of that type.
    pub vcpus: u32,
    /// Memory of that type, MiB.
    pub memory_mib: u64,
    /// When it was looked at.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Time,
    /// When it was started.
    #[schema(value_type = String, format = DateTime)]
    pub launch_time: Time,
    /// Processor time, microseconds, of all its threads.
    pub cpu_us: u64,
    /// Memory that it occupies on the host now, bytes.
    pub memory_bytes: u64,
    /// Bytes that it read from its disks.
    pub disk_read_bytes: u64,
    /// Bytes that it wrote to its disks.
    pub disk_written_bytes: u64,
    /// Bytes that it received.
    pub net_received_bytes: u64,
    /// Bytes that it sent.
    pub net_sent_bytes: u64,
    /// CPU credits left; burstable types only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub cpu_credits: Option<f64>,
}
