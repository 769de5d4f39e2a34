//! A virtio function in a snapshot.

use serde::{Deserialize, Serialize};

use crate::{
    pci::msix,
    state::Hex,
    virtio::{DeviceState, Position},
};

/// All that the driver has said, and where its queues stand.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Saved {
    /// Device status.
    pub status: u8,
    pub(super) isr: u8,
    pub(super) config_vector: u16,
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u16,
    /// Each queue.
    pub queues: Vec<SavedQueue>,
    pub(super) msix: msix::Saved,
    /// The device's own configuration. A device that was given more since then begins with this.
    pub(super) config: Hex,
    /// Whether the device was at work.
    pub active: bool,
    /// What the device itself remembers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceState>,
}

/// One queue.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SavedQueue {
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    pub(super) vector: u16,
    /// Where the device stands in it; the beginning, if it was not at work.
    #[serde(default)]
    pub position: Option<Position>,
}
