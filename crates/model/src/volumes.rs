//! Volumes: disks that outlive the machines they are attached to.

use std::ops::RangeInclusive;

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

impl VolumeKind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Gp3, Self::Gp2, Self::Io1, Self::Io2, Self::St1, Self::Sc1, Self::Standard];

    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gp3 => "gp3",
            Self::Gp2 => "gp2",
            Self::Io1 => "io1",
            Self::Io2 => "io2",
            Self::St1 => "st1",
            Self::Sc1 => "sc1",
            Self::Standard => "standard",
        }
    }

    /// The sizes that it comes in, GiB: EC2 API Reference, `CreateVolume`, parameter `Size`.
    pub fn sizes_gib(self) -> RangeInclusive<u32> {
        match self {
            Self::Gp3 => 1..=65_536,
            Self::Gp2 => 1..=16_384,
            Self::Io1 => 4..=16_384,
            Self::Io2 => 4..=65_536,
            Self::St1 | Self::Sc1 => 125..=16_384,
            Self::Standard => 1..=1_024,
        }
    }

    /// An instance can be booted from it: EBS's hard disks cannot be root volumes.
    pub fn can_be_root(self) -> bool {
        !matches!(self, Self::St1 | Self::Sc1)
    }
}

#[cfg(test)]
mod tests {
    use super::{Volume, VolumeKind};
    use crate::samples;

    #[test]
    fn kinds() {
        for kind in VolumeKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert!(kind.sizes_gib().contains(&125) && !kind.sizes_gib().contains(&0));
        }
        assert!(VolumeKind::default().can_be_root() && !VolumeKind::Sc1.can_be_root());
        let json = serde_json::to_string(&samples::volume()).unwrap();
        assert_eq!(serde_json::from_str::<Volume>(&json).unwrap(), samples::volume());
    }
}
