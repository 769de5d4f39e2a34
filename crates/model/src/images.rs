//! Images: immutable disks that instances are launched from.

use serde::{Deserialize, Serialize};

use crate::{Arch, ids::ImageId, tags::Tags, time::Time};

/// An image, as the store keeps it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name, unique in the region: 3 to 128 letters, digits and `()[] ./-'@_`.
    pub name: String,
    /// What it is, in words.
    pub description: String,
    /// The disk's file, an absolute path or a name in the pool's folder `images`. Never written to.
    pub file: String,
    /// How the file holds the disk.
    pub format: DiskFormat,
    /// Processor architecture of the kernel on it.
    pub arch: Arch,
    /// The disk's size, bytes.
    pub size_bytes: u64,
    /// Who can log in with the key pair: `debian`, `root`.
    pub login_user: String,
    /// When it was registered.
    pub created: Time,
    /// Tags.
    pub tags: Tags,
}

/// How a file holds a disk. Recorded, never probed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// Byte N of the file is byte N of the disk.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}
