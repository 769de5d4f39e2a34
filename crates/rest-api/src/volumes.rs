//! Volumes.

use std::collections::BTreeMap;

use ec2vmm_model::Time;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One page of volumes.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct VolumeList {
    /// The volumes, by id.
    pub volumes: Vec<Volume>,
    /// Where to go on; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next_token: Option<String>,
}

/// A volume.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Volume {
    /// Its id.
    #[schema(example = "vol-0123456789abcdef0")]
    pub volume_id: String,
    /// Size, GiB: what is charged.
    pub size_gib: u32,
    /// Kind: what is charged for a GiB.
    pub kind: VolumeKind,
    /// The image that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub image_id: Option<String>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub creation_time: Time,
    /// Where it is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub attachment: Option<VolumeAttachment>,
    /// Its tags, by key.
    pub tags: BTreeMap<String, String>,
}

/// Where a volume is attached.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct VolumeAttachment {
    /// To whom.
    pub instance_id: String,
    /// As EC2 names it, such as `/dev/sda1`.
    pub device_name: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub attach_time: Time,
    /// It goes when the instance is terminated.
    pub delete_on_termination: bool,
}

/// The kinds of volumes that EBS has.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// General purpose SSD.
    #[default]
    Gp3,
    /// General purpose SSD, the generation before.
    Gp2,
    /// Provisioned IOPS SSD.
    Io1,
    /// Provisioned IOPS SSD, the durable kind.
    Io2,
    /// Throughput optimized hard disk.
    St1,
    /// Cold hard disk.
    Sc1,
    /// Magnetic.
    Standard,
}
