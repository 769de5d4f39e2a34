//! `ec2vmm machine merge`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use clap::ValueHint;
use ec2vmm_host::files;
use ec2vmm_snapshot::{
    MemoryFileError, MergeError, STATE_BYTES_MAX, StateFileError, merge, read_document, read_head,
};
use ec2vmm_vmm_api::FailureKind;
use rustix::fs::{CWD, RenameFlags};

use crate::{
    Done,
    error::{Error, chain, failed_to, kind_of_path},
    output::{self, bytes},
};

/// Make one full snapshot of a full one and its differences
///
/// The new one is the last of them: the same state, and the memory that `ec2vmm run` puts together of them all.
/// Machines that go on from it share its pages, where what differences hold is copied for each. What was recorded of
/// the last one's working set, and differences to it, go with the new one too.
#[derive(Debug, clap::Args)]
pub(crate) struct MachineMerge {
    /// Folder of the full snapshot
    #[arg(value_hint = ValueHint::DirPath)]
    full: PathBuf,
    /// Folders of the differences, in the order in which they were taken
    #[arg(value_name = "DIFFERENCE", required = true, value_hint = ValueHint::DirPath)]
    differences: Vec<PathBuf>,
    /// Folder to make, for the files `state` and `memory`
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    into: PathBuf,
}

pub(crate) fn run(args: &MachineMerge) -> Done {
    let folders = || [&args.full].into_iter().chain(&args.differences);
    let last = args.differences.last().unwrap_or(&args.full);
    let state = files::read(&last.join("state"), STATE_BYTES_MAX)?;
    let memory: Vec<File> =
        folders().map(|folder| files::open(&folder.join("memory"))).collect::<Result<_, _>>()?;
    let head = read_document(&mut state.as_slice())
        .and_then(|document| read_head(&document))
        .map_err(|error| broken_state(last, &error))?;
    let failed = |error: io::Error| {
        Error::new(kind_of_path(&error), format!("cannot make {}: {error}", args.into.display()))
            .hint("name a folder that is not there yet")
    };
    if args.into.symlink_metadata().is_ok() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let made = Aside::make(&args.into).map_err(failed)?;
    let target = made.create("memory").map_err(failed)?;
    let memory_bytes = merge(&head, &memory, &target).map_err(|error| explain(&error, folders()))?;
    let mut copy = made.create("state").map_err(failed)?;
    copy.write_all(&state).map_err(failed_to("write the state"))?;
    for file in [&target, &copy] {
        file.sync_all().map_err(failed_to("write the snapshot to the disk"))?;
    }
    made.put_in_place(&args.into).map_err(failed)?;
    let folder = args.into.display().to_string();
    output::print(format!("{}  {} of memory\n", output::printable(&folder), bytes(memory_bytes)))
}

/// A folder beside the one that is to be. It goes when it is dropped before it was put in place.
struct Aside {
    path: PathBuf,
    in_place: bool,
}

impl Aside {
    fn make(into: &Path) -> io::Result<Self> {
        let mut name = into.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let path = into.with_file_name(name);
        // What is in it is all that the guest knows.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path, in_place: false })
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(self.path.join(name))
    }

    /// Gives it its name, unless somebody else has it by now. After a power cut it is there as a whole or not at
    /// all.
    fn put_in_place(mut self, into: &Path) -> io::Result<()> {
        File::open(&self.path)?.sync_all()?;
        rustix::fs::renameat_with(CWD, &self.path, CWD, into, RenameFlags::NOREPLACE)?;
        self.in_place = true;
        let parent = into.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.in_place {
            // What is in the way of that is told by the error that brought us here.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn broken_state(folder: &Path, error: &StateFileError) -> Error {
    let kind = match error {
        StateFileError::Format(_) => FailureKind::SnapshotVersion,
        _ => FailureKind::BrokenSnapshot,
    };
    Error::new(kind, format!("{}: {}", folder.display(), chain(error)))
}

fn explain<'a>(error: &MergeError, mut folders: impl Iterator<Item = &'a PathBuf>) -> Error {
    let MergeError::Memory(memory) = error else {
        let kind = match error {
            MergeError::Size => FailureKind::BrokenSnapshot,
            _ => FailureKind::Other,
        };
        return Error::new(kind, chain(error));
    };
    let kind = match memory {
        MemoryFileError::Format { .. } => FailureKind::SnapshotVersion,
        _ => FailureKind::BrokenSnapshot,
    };
    let index = match memory {
        MemoryFileError::Magic { index }
        | MemoryFileError::Format { index, .. }
        | MemoryFileError::Checksum { index }
        | MemoryFileError::Shortened { index }
        | MemoryFileError::Read { index, .. } => *index,
        MemoryFileError::Chain(_) => {
            return Error::new(kind, chain(error))
                .hint("name the full snapshot, then each difference, in the order in which they were taken");
        }
    };
    let place = folders.nth(index).map(|folder| format!("{}: ", folder.display())).unwrap_or_default();
    Error::new(kind, format!("{place}{}", chain(error)))
}
