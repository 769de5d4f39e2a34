//! The snapshots that a machine goes on from.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use ec2vmm_host::{files, machine, userfaultfd};
use ec2vmm_vmm_api::FailureKind;
use rustix::fs::FlockOperation;

use crate::{
    args::Run,
    error::{Error, failed_to, kind_of_path},
    value::settings::MemorySetting,
};

/// Snapshots to go on from, and how.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Restore {
    /// The full one first.
    folders: Vec<PathBuf>,
    backend: MemorySetting,
    /// A working set to bring in ahead.
    prefetch: Option<PathBuf>,
    /// Where to write one.
    record: Option<PathBuf>,
}

impl Restore {
    pub(crate) fn new(args: &Run) -> Result<Option<Self>, Error> {
        let backend = args.memory_backend.unwrap_or_default();
        let (prefetch, record) = (args.prefetch.clone(), args.record_working_set.clone());
        if backend == MemorySetting::Mapped && (prefetch.is_some() || record.is_some()) {
            let message =
                "--record-working-set and --prefetch are for memory that is brought in page by page";
            return Err(
                Error::new(FailureKind::Usage, message).hint("say `--memory-backend userfaultfd` too")
            );
        }
        let folders = args.restore.clone();
        Ok((!folders.is_empty()).then_some(Self { folders, backend, prefetch, record }))
    }

    /// Opens the state of the last, the memory of all, and what the backend needs.
    pub(crate) fn open(&self) -> Result<machine::Restore, Error> {
        let open_in = |folder: &PathBuf, name| files::open(&folder.join(name));
        let [.., last] = self.folders.as_slice() else {
            return Err(failed_to("restore")(io::ErrorKind::NotFound.into()));
        };
        let state = open_in(last, "state")?;
        let memory = self.folders.iter().map(|folder| open_in(folder, "memory")).collect::<Result<_, _>>()?;
        let backend = match self.backend {
            MemorySetting::Mapped => machine::MemoryBackend::Mapped,
            MemorySetting::Userfaultfd => machine::MemoryBackend::Userfaultfd {
                device: userfaultfd::open().map_err(failed_to("open /dev/userfaultfd"))?,
                prefetch: self.prefetch.as_deref().map(files::open).transpose()?,
                record: self.record.as_deref().map(create).transpose()?,
            },
        };
        Ok(machine::Restore { state, memory, backend })
    }
}

/// A file for a working set, whose content stays until there is a new one.
fn create(path: &Path) -> Result<File, Error> {
    let failed = |error: io::Error| {
        Error::new(
            kind_of_path(&error),
            format!("cannot write the working set to {}: {error}", path.display()),
        )
    };
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
    // Two machines would garble it; and a disk of this machine, which is locked, must not be overwritten.
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| failed(io::Error::other("the file is in use by another machine, or as a disk")))?;
    Ok(file)
}
