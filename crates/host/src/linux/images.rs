//! Images: disks that are looked at and built upon, and never written to.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

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
    /// Where nobody's images are: the pool's folder of volumes.
    volumes: PathBuf,
}

impl Images {
    pub(super) fn new(folder: PathBuf, volumes: PathBuf) -> Self {
        Self { folder, volumes }
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
        let disk =
            disks::open_to_inspect(&path, Some(spell(image.format))).map_err(|error| explain(&error))?;
        self.check_alone(image, &path)?;
        Ok(disk)
    }

    /// An image is one file, and somebody's own: guests shall not read what else there is on the host, be it
    /// that a stranger's qcow2 file names it as what lies beneath.
    fn check_alone(&self, image: &ImageFile, path: &Path) -> Result<(), Error> {
        let refused = |what: String, hint: &str| Error::Image {
            message: format!("{}: {what}", image.file.display()),
            hint: Some(hint.into()),
        };
        let unreadable = |error: std::io::Error| refused(error.to_string(), "check the file");
        let real = fs::canonicalize(path).map_err(unreadable)?;
        if !fs::metadata(&real).map_err(unreadable)?.is_file() {
            let what = "an image is a regular file".to_owned();
            return Err(refused(what, "copy the disk to a file with `qemu-img convert`"));
        }
        if fs::canonicalize(&self.volumes).is_ok_and(|volumes| real.starts_with(volumes)) {
            let what = "it is a volume's file, which changes".to_owned();
            return Err(refused(what, "stop the instance, and copy the file with `qemu-img convert`"));
        }
        let format = match image.format {
            DiskFormat::Raw => ec2vmm_image::Format::Raw,
            DiskFormat::Qcow2 => ec2vmm_image::Format::Qcow2,
        };
        let chain = ec2vmm_image::open_chain(path, Some(format), false)
            .map_err(|error| refused(super::error::with_causes(&error), "check the file"))?;
        match chain.get(1) {
            None => Ok(()),
            Some((beneath, _)) => Err(refused(
                format!("it is only a layer over another file, {}", beneath.display()),
                "make one file of the two with `qemu-img convert -O qcow2`",
            )),
        }
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
        let images = Images::new(folder.path().to_owned(), folder.path().join("volumes"));
        std::fs::write(folder.path().join("zeros"), vec![0; 1 << 20]).unwrap();
        for file in ["", "../zeros", "./zeros", "none", "zeros"] {
            let image = ImageFile { file: file.into(), format: DiskFormat::Raw };
            let error = images.inspect(&image).unwrap_err();
            assert!(matches!(error, Error::Image { .. }), "{file}: {error:?}");
        }
        let pool = ImageFile { file: "zeros".into(), format: DiskFormat::Raw };
        assert_eq!(images.path(&pool).unwrap(), folder.path().join("zeros"));
    }
    #[test]
    fn an_image_leads_to_no_other_file() {
        let pool = tempfile::tempdir().unwrap();
        let (folder, volumes) = (pool.path().join("images"), pool.path().join("volumes"));
        let images = Images::new(folder.clone(), volumes.clone());
        for folder in [&folder, &volumes] {
            std::fs::create_dir(folder).unwrap();
        }
        let secret = pool.path().join("secret");
        std::fs::write(&secret, vec![1; 1 << 20]).unwrap();
        std::fs::copy(&secret, volumes.join("vol")).unwrap();
        std::os::unix::fs::symlink(volumes.join("vol"), folder.join("link")).unwrap();
        let layer = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(folder.join("layer.qcow2"))
            .unwrap();
        let beneath = secret.to_str().unwrap();
        ec2vmm_image::create_overlay_over(layer, 1 << 20, beneath, ec2vmm_image::Format::Raw).unwrap();
        let told = |file: &str, format| match images.open(&ImageFile { file: file.into(), format }) {
            Err(Error::Image { message, .. }) => message,
            other => panic!("{file}: {:?}", other.map(drop)),
        };
        assert!(told("layer.qcow2", DiskFormat::Qcow2).contains("a layer over another file"));
        assert!(told("link", DiskFormat::Raw).contains("a volume's file"));
        images.open(&ImageFile { file: secret, format: DiskFormat::Raw }).map(drop).unwrap();
    }
}
