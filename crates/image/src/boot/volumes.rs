//! The disk's partitions under the names that GRUB gives them, and the files on those that can be read.

use std::fmt;

use super::grub::{At, Device, Place, Places};
use crate::disk::Disk;
use crate::ext4::{FileHandle, Files, FilesError};
use crate::filesystem::{self, Filesystem, FilesystemKind};
use crate::partition::{Partition, Table, TableKind};
use crate::window::{Budget, Window};

/// All volumes of a disk.
pub(crate) struct Volumes(Vec<Volume>);

/// One partition, or the whole disk.
pub(crate) struct Volume {
    pub(crate) partition: Partition,
    pub(crate) filesystem: Option<Filesystem>,
    /// GRUB's name, such as `hd0,gpt1`.
    device: String,
    /// Its files, if its file system is one that we read.
    files: Option<Result<Files, FilesError>>,
}

impl Volumes {
    pub(crate) fn open(disk: &Disk, table: &Table) -> Result<Self, std::io::Error> {
        let budget = Budget::new();
        let mut volumes = Vec::new();
        for partition in &table.partitions {
            let window = Window::new(disk, partition.start, partition.size, &budget);
            let filesystem = filesystem::recognise(&window)?;
            let readable = filesystem.as_ref().is_some_and(|found| found.kind == FilesystemKind::Ext4);
            let device = match table.kind {
                TableKind::Gpt => format!("hd0,gpt{}", partition.number),
                TableKind::Mbr => format!("hd0,msdos{}", partition.number),
                TableKind::None => "hd0".to_owned(),
            };
            let files = readable.then(|| Files::open(&window));
            volumes.push(Volume { partition: partition.clone(), filesystem, device, files });
        }
        Ok(Self(volumes))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Volume> {
        self.0.iter()
    }

    /// The files of all volumes that can be read.
    pub(super) fn readable(&self) -> impl Iterator<Item = (&Volume, &Files)> {
        self.0.iter().filter_map(|volume| Some((volume, volume.files.as_ref()?.as_ref().ok()?)))
    }

    /// The first file system that should be readable and is not.
    pub(super) fn take_broken(self) -> Option<(String, FilesError)> {
        self.0.into_iter().find_map(|volume| {
            let name = volume.to_string();
            Some((name, volume.files?.err()?))
        })
    }

    /// The regular file at `place`.
    pub(super) fn file(&self, place: &Place) -> Result<Option<FileHandle>, FilesError> {
        match self.files(&place.device) {
            Some(files) => files.file(&place.path),
            None => Ok(None),
        }
    }

    /// The volume that GRUB calls `device`; the kind of table may be left out, as in `hd0,1`.
    pub(super) fn volume(&self, device: &str) -> Option<&Volume> {
        let short = |name: &str| name.replace("gpt", "").replace("msdos", "");
        let exact = self.0.iter().find(|volume| volume.device == device);
        exact.or_else(|| self.0.iter().find(|volume| short(&volume.device) == device))
    }

    fn files(&self, device: &str) -> Option<&Files> {
        self.volume(device)?.files.as_ref()?.as_ref().ok()
    }
}

impl Volume {
    /// GRUB's name.
    pub(super) fn device(&self) -> &str {
        &self.device
    }

    /// Why its files cannot be read, if they should be readable.
    pub(crate) fn fault(&self) -> Option<&FilesError> {
        self.files.as_ref()?.as_ref().err()
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.filesystem.as_ref().map_or("unknown contents", |found| found.kind.name());
        match self.partition.number {
            0 => write!(f, "the disk ({kind})"),
            number => write!(f, "partition {number} ({kind})"),
        }
    }
}

impl Places for Volumes {
    fn at(&self, place: &Place) -> Result<Option<At>, FilesError> {
        let Some(files) = self.files(&place.device) else { return Ok(None) };
        if let Some(file) = files.file(&place.path)? {
            return Ok(Some(At::File { size: file.size() }));
        }
        Ok(files.is_folder(&place.path)?.then_some(At::Folder))
    }

    fn read(&self, place: &Place, limit: u64) -> Result<Option<Vec<u8>>, FilesError> {
        self.file(place)?.map(|file| file.read(limit)).transpose()
    }

    fn list(&self, place: &Place, limit: usize) -> Result<Vec<String>, FilesError> {
        match self.files(&place.device) {
            Some(files) => files.list(&place.path, limit),
            None => Ok(Vec::new()),
        }
    }

    fn devices(&self) -> Vec<Device> {
        let device = |volume: &Volume| Device {
            name: volume.device.clone(),
            uuid: volume.filesystem.as_ref().and_then(|found| found.uuid.clone()),
            label: volume.filesystem.as_ref().and_then(|found| found.label.clone()),
            partuuid: volume.partition.partuuid.clone(),
        };
        self.0.iter().map(device).collect()
    }
}
