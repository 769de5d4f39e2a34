//! Images: disks that are looked at and built upon, and never written to.

use std::path::{Component, Path, PathBuf};

use ec2vmm_image::boot::Architecture;
use ec2vmm_model::{Arch, images::DiskFormat};
use ec2vmm_vmm_api::config::Format;

use super::error::explain;
use crate::{
    disks,
    host::{Error, ImageFacts, ImageFile},
};

/// The pool's folder of images.
#[derive(Clone, Debug)]
pub(super) struct Images {
    folder: PathBuf,
}

impl Images {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where an image is.
    ///
    /// # Errors
    /// A relative path that leads out of the folder.
    pub(super) fn path(&self, image: &ImageFile) -> Result<PathBuf, Error> {
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        match image.file.is_absolute() {
            true => Ok(image.file.clone()),
            false if image.file.components().all(plain) && image.file != Path::new("") => {
                Ok(self.folder.join(&image.file))
            }
            false => Err(Error::Image {
                message: format!("{} is no file in the folder of images", image.file.display()),
                hint: Some("give an absolute path, or a name in the pool's folder `images`".into()),
            }),
        }
    }

    /// The image as a disk, locked against writers.
    pub(super) fn open(&self, image: &ImageFile) -> Result<ec2vmm_image::Disk, Error> {
        let path = self.path(image)?;
        disks::open_to_inspect(&path, Some(spell(image.format))).map_err(|error| explain(&error))
    }

    /// Looks at an image.
    pub(super) fn inspect(&self, image: &ImageFile) -> Result<ImageFacts, Error> {
        let disk = self.open(image)?;
        let broken = |message: String| Error::Image {
            message: format!("{}: {message}", image.file.display()),
            hint: Some("`ec2vmm image inspect FILE` shows what is on it".into()),
        };
        let seen = ec2vmm_image::inspect(&disk).map_err(|error| broken(super::error::with_causes(&error)))?;
        let boot = seen.boot.ok_or_else(|| {
            broken(seen.boot_error.unwrap_or_else(|| "nothing on it can be booted".to_owned()))
        })?;
        let arch = match boot.kernel.architecture {
            Architecture::X86_64 => Arch::X86_64,
            Architecture::Arm64 => Arch::Arm64,
            other => return Err(broken(format!("its kernel is for another architecture: {other:?}"))),
        };
        Ok(ImageFacts { size_bytes: seen.size, arch })
    }
}

/// As a machine process is told.
pub(super) fn spell(format: DiskFormat) -> Format {
    match format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
    }
}

#[cfg(test)]
mod tests {
    use ec2vmm_model::images::DiskFormat;

    use super::Images;
    use crate::host::{Error, ImageFile};

    #[test]
    fn what_is_no_image() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path().to_owned());
        std::fs::write(folder.path().join("zeros"), vec![0; 1 << 20]).unwrap();
        for file in ["", "../zeros", "./zeros", "none", "zeros"] {
            let image = ImageFile { file: file.into(), format: DiskFormat::Raw };
            let error = images.inspect(&image).unwrap_err();
            assert!(matches!(error, Error::Image { .. }), "{file}: {error:?}");
        }
        let pool = ImageFile { file: "zeros".into(), format: DiskFormat::Raw };
        assert_eq!(images.path(&pool).unwrap(), folder.path().join("zeros"));
    }
}
