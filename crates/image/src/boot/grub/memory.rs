//! A disk in memory for tests and fuzzing.

use std::collections::BTreeMap;

use super::places::{At, Device, Place, Places};
use crate::ext4::FilesError;

/// Devices, and files by `(device)/path`.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) devices: Vec<Device>,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Memory {
    /// Adds a device with its file system's UUID and label.
    pub(crate) fn device(mut self, name: &str, uuid: &str, label: &str) -> Self {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        self.devices.push(Device {
            name: name.to_owned(),
            uuid: text(uuid),
            label: text(label),
            partuuid: None,
        });
        self
    }

    /// Adds a file.
    pub(crate) fn file(mut self, place: &str, contents: &str) -> Self {
        self.files.insert(place.to_owned(), contents.as_bytes().to_vec());
        self
    }
}

impl Places for Memory {
    fn at(&self, place: &Place) -> Result<Option<At>, FilesError> {
        let name = place.to_string();
        let folder = format!("{}/", name.trim_end_matches('/'));
        Ok(match self.files.get(&name) {
            Some(contents) => Some(At::File { size: contents.len() as u64 }),
            None => self.files.keys().any(|file| file.starts_with(&folder)).then_some(At::Folder),
        })
    }

    fn read(&self, place: &Place, limit: u64) -> Result<Option<Vec<u8>>, FilesError> {
        Ok(self.files.get(&place.to_string()).filter(|bytes| bytes.len() as u64 <= limit).cloned())
    }

    fn list(&self, place: &Place, limit: usize) -> Result<Vec<String>, FilesError> {
        let folder = format!("{place}/");
        let names = self.files.keys().filter_map(|file| file.strip_prefix(&folder));
        Ok(names.filter(|name| !name.contains('/')).take(limit).map(str::to_owned).collect())
    }

    fn devices(&self) -> Vec<Device> {
        self.devices.clone()
    }
}
