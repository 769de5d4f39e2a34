//! What a GRUB script can see of the disk: devices by name, and the files on them.

use crate::ext4::FilesError;

/// A file or folder as GRUB names it: `(hd0,gpt1)/boot/grub`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    /// The device without parentheses, such as `hd0,gpt1`.
    pub(crate) device: String,
    /// The absolute path on it.
    pub(crate) path: String,
}

/// What is at a place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum At {
    /// A file of so many bytes.
    File {
        /// Size in bytes.
        size: u64,
    },
    /// A folder.
    Folder,
}

/// The devices and their files.
pub(crate) trait Places {
    /// What is at `place`; `None` if nothing is, or the device is unknown.
    fn at(&self, place: &Place) -> Result<Option<At>, FilesError>;

    /// The contents of a file of at most `limit` bytes; `None` if there is none.
    fn read(&self, place: &Place, limit: u64) -> Result<Option<Vec<u8>>, FilesError>;

    /// The names in a folder, at most `limit`; none if there is no such folder.
    fn list(&self, place: &Place, limit: usize) -> Result<Vec<String>, FilesError>;

    /// The devices with their file systems' UUID and label, in GRUB's order.
    fn devices(&self) -> Vec<Device>;
}

/// One device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) uuid: Option<String>,
    pub(crate) label: Option<String>,
    pub(crate) partuuid: Option<String>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({}){}", self.device, self.path)
    }
}
