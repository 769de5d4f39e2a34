//! Volumes: disks that outlive the machines they are attached to.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{ImageId, InstanceId, VolumeId},
    tags::Tags,
    time::Time,
};

/// A volume, as the store keeps it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Volume {
    /// Its id. The guest reads it as the disk's serial number, without the hyphen as on EC2.
    pub id: VolumeId,
    /// Size, GiB: what is charged.
    pub size_gib: u32,
    /// Kind: what is charged for a GiB.
    pub kind: VolumeKind,
    /// What it was made from: a root volume is a copy-on-write layer over the image.
    pub image: Option<ImageId>,
    /// When it was created.
    pub created: Time,
    /// Where it is attached.
    pub attachment: Option<Attachment>,
    /// Tags.
    pub tags: Tags,
}

/// Where a volume is attached.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Attachment {
    /// To whom.
    pub instance: InstanceId,
    /// As EC2 names it, such as `/dev/sda1`.
    pub device: String,
    /// When.
    pub attached: Time,
    /// It goes when the instance is terminated.
    pub delete_on_termination: bool,
}

/// The kinds of volumes that EBS has.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// General purpose SSD, what a launch gives when nothing is said.
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
