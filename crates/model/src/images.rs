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

/// What is no name of an image: `InvalidAMIName.Malformed`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an image's name is {NAME_CHARS_MIN} to {NAME_CHARS_MAX} letters, digits and ()[] ./-'@_")]
pub struct InvalidName;

/// What is no description of an image: `InvalidParameterValue`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an image's description has at most {DESCRIPTION_CHARS_MAX} characters, and no control characters")]
pub struct InvalidDescription;

/// Whether an image can be called so: EC2 API Reference, `RegisterImage`.
///
/// # Errors
/// [`InvalidName`].
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    let fits = (NAME_CHARS_MIN..=NAME_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"()[] ./-'@_".contains(&byte));
    fits.then_some(()).ok_or(InvalidName)
}

/// Whether an image can be described so.
///
/// # Errors
/// [`InvalidDescription`].
pub fn check_description(description: &str) -> Result<(), InvalidDescription> {
    let fits =
        description.chars().count() <= DESCRIPTION_CHARS_MAX && !description.chars().any(char::is_control);
    fits.then_some(()).ok_or(InvalidDescription)
}

/// Shortest name.
pub const NAME_CHARS_MIN: usize = 3;
/// Longest name.
pub const NAME_CHARS_MAX: usize = 128;
/// Longest description.
pub const DESCRIPTION_CHARS_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::{check_description, check_name};

    #[test]
    fn names() {
        for name in ["abc", "debian-12", "a (b) [c] ./-'@_", &"n".repeat(128)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "ab", "a:b", "debian\n12", "\u{fc}ber", &"n".repeat(129)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_description("").is_ok() && check_description(&"\u{fc}".repeat(255)).is_ok());
        assert!(check_description(&"d".repeat(256)).is_err() && check_description("a\0").is_err());
    }
}
