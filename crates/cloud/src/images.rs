//! Images: files that were registered.

use std::path::PathBuf;

use ec2vmm_model::{images::DiskFormat, tags::Tags};

use crate::{filters::Filter, page::Paging};

/// An image to be registered.
#[derive(Clone, Debug)]
pub struct RegisterImage {
    /// Its name, unique: 3 to 128 letters, digits and `()[] ./-'@_`.
    pub name: String,
    /// What it is, in words: up to 255 characters.
    pub description: String,
    /// The disk's file, an absolute path or a name in the pool's folder `images`. It must stay.
    pub file: PathBuf,
    /// How the file holds the disk.
    pub format: DiskFormat,
    /// Who can log in with the key pair.
    pub login_user: String,
    /// Tags.
    pub tags: Tags,
    /// The id that it shall have; nothing for a new one.
    pub id: Option<String>,
}

/// Which images.
#[derive(Clone, Debug, Default)]
pub struct DescribeImages {
    /// These, all of which must be there. None: all.
    pub ids: Vec<String>,
    /// That meet these.
    pub filters: Vec<Filter>,
    /// Page by page.
    pub paging: Paging,
}

impl crate::Cloud {
    /// `RegisterImage`: the host looks at the file first.
    pub async fn register_image(&self, image: RegisterImage) -> Result<std::sync::Arc<ec2vmm_model::images::Image>, crate::Error> { todo!() }
    /// `DescribeImages`.
    pub async fn describe_images(&self, what: &DescribeImages) -> Result<crate::page::Page<std::sync::Arc<ec2vmm_model::images::Image>>, crate::Error> { todo!() }
    /// `DeregisterImage`: instances that were launched from it go on; the file must stay as long as they do.
    pub async fn deregister_image(&self, id: &str) -> Result<(), crate::Error> { todo!() }
}
