//! Images.

use std::collections::BTreeMap;

use ec2vmm_model::Time;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::instance_types::Architecture;

/// A disk to register as an image. The file stays where it is, and must not change from then on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterImageRequest {
    /// Its name, unique in the region: 3 to 128 letters, digits and `()[] ./-'@_`.
    #[schema(
        min_length = 3,
        max_length = 128,
        pattern = r"^[A-Za-z0-9()\[\] ./'@_-]+$",
        example = "debian-12"
    )]
    pub name: String,
    /// What it is, in words.
    #[serde(default)]
    #[schema(max_length = 255)]
    pub description: String,
    /// The disk's file on the daemon's host: an absolute path, or a name in the daemon's folder `images`.
    #[schema(min_length = 1, max_length = 4096, example = "debian-12.qcow2")]
    pub file: String,
    /// How the file holds the disk. Never guessed.
    pub format: DiskFormat,
    /// Who can log in with the key pair.
    #[schema(min_length = 1, max_length = 32, pattern = "^[a-z_][a-z0-9_-]*$", example = "debian")]
    pub login_user: String,
    /// The id that it shall have, where other code names it. Without it, a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^ami-([0-9a-f]{8}|[0-9a-f]{17})$")]
    pub image_id: Option<String>,
    /// Its tags, by key.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// How a file holds a disk.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Byte N of the file is byte N of the disk.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

/// One page of images.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ImageList {
    /// The images, by id.
    pub images: Vec<Image>,
    /// Where to go on; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next_token: Option<String>,
}

/// An image: an immutable disk that instances are launched from.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Image {
    /// Its id.
    #[schema(example = "ami-0123456789abcdef0")]
    pub image_id: String,
    /// Its name, unique in the region.
    pub name: String,
    /// What it is, in words.
    pub description: String,
    /// The disk's file on the daemon's host.
    pub file: String,
    /// How the file holds the disk.
    pub format: DiskFormat,
    /// Of the kernel on it.
    pub architecture: Architecture,
    /// The disk's size, bytes.
    pub size_bytes: u64,
    /// Who can log in with the key pair.
    pub login_user: String,
    /// When it was registered.
    #[schema(value_type = String, format = DateTime)]
    pub creation_time: Time,
    /// Its tags, by key.
    pub tags: BTreeMap<String, String>,
}
