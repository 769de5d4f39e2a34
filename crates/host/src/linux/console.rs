//! Consoles: what machines have shown, and a line to those that run.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use ec2vmm_model::ids::InstanceId;
use ec2vmm_vmm_api::console_log::{self, FILE_BYTES, HEADER_BYTES};
use tokio::net::UnixStream;

use super::error::system;
use crate::host::{Error, Stream};

/// The folder of the consoles' logs.
#[derive(Clone, Debug)]
pub(super) struct Consoles {
    folder: PathBuf,
}

impl Consoles {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The end of what a console has shown since the last start; nothing where there was none.
    pub(super) fn output(&self, instance: &InstanceId) -> Result<Vec<u8>, Error> {
        let path = self.folder.join(instance.as_str());
        match read(&path) {
            Ok(output) => Ok(output),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(system(format!("reading the console's log {}", path.display()))(error)),
        }
    }

    /// Forgets it, if there was any.
    pub(super) fn forget(&self, instance: &InstanceId) -> Result<(), Error> {
        let path = self.folder.join(instance.as_str());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(system(format!("removing the console's log {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Whose output is remembered.
    pub(super) fn list(&self) -> Result<Vec<InstanceId>, Error> {
        let entries = std::fs::read_dir(&self.folder).map_err(system("reading the folder of consoles"))?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }
}

/// A line to a console that somebody serves.
pub(super) async fn stream(instance: &InstanceId, socket: &Path) -> Result<Box<dyn Stream>, Error> {
    match UnixStream::connect(socket).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Err(Error::NotRunning(instance.clone()))
            }
            _ => Err(system(format!("connecting to the console of {instance}"))(error)),
        },
    }
}

/// Reads a log that the machine may be writing to.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let nonsense = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let file = File::open(path)?;
    let mut content = Vec::new();
    (&file).take(FILE_BYTES).read_to_end(&mut content)?;
    let mut header = vec![0; usize::try_from(HEADER_BYTES).unwrap_or_default().min(content.len())];
    file.read_exact_at(&mut header, 0)?;
    let printed = console_log::printed(&header).map_err(nonsense)?;
    console_log::read_live(&content, printed).map_err(nonsense)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ec2vmm_model::ids::InstanceId;
    use ec2vmm_vmm_api::console_log::{self, FILE_BYTES, Slot};

    use super::Consoles;

    #[test]
    fn what_was_shown_is_kept_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let consoles = Consoles::new(folder.path().to_owned());
        let instance = InstanceId::from_random(9);
        assert_eq!(consoles.output(&instance).unwrap(), b"");
        let path = folder.path().join(instance.as_str());
        fs::write(&path, "").unwrap();
        assert_eq!(consoles.output(&instance).unwrap(), b"");
        let mut file = console_log::header();
        file.resize(usize::try_from(FILE_BYTES).unwrap(), 0);
        let at = usize::try_from(console_log::place(0).0).unwrap();
        file[at..at + 5].copy_from_slice(b"hello");
        let slot = Slot::new(1, 5);
        let at = usize::try_from(slot.offset).unwrap();
        file[at..at + slot.bytes.len()].copy_from_slice(&slot.bytes);
        fs::write(&path, file).unwrap();
        assert_eq!(consoles.output(&instance).unwrap(), b"hello");
        assert_eq!(consoles.list().unwrap(), std::slice::from_ref(&instance));
        fs::write(&path, "no log").unwrap();
        consoles.output(&instance).unwrap_err();
        consoles.forget(&instance).unwrap();
        consoles.forget(&instance).unwrap();
        assert_eq!(consoles.list().unwrap(), []);
    }
}
