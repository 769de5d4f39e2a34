//! `ec2vmm machine snapshot`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use clap::ValueHint;
use ec2vmm_host::control::{self, Control};
use ec2vmm_vmm_api::{
    FailureKind,
    control::{PowerAction, SnapshotKind, SnapshotRequest, SnapshotTaken},
};

use crate::{
    Done,
    error::{Error, chain, failed_to, kind_of_path},
    output::{self, bytes},
};

/// Write a running machine into a folder, from which `ec2vmm run --restore` goes on
///
/// The machine stands still meanwhile. Its disks are not in it: it goes on with disks that have not been
/// written to since, or with copies that keep their times (cp -p). So pause or end it before it writes more.
#[derive(Debug, clap::Args)]
pub(crate) struct MachineSnapshot {
    /// Folder to make, for the files `state` and `memory`
    #[arg(value_hint = ValueHint::DirPath)]
    folder: PathBuf,
    /// The machine's control socket, as given to `ec2vmm run`
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    control_socket: PathBuf,
    /// Note from now on what changes, so that the next snapshot can be a difference to this one
    #[arg(long, conflicts_with = "power_off")]
    track: bool,
    /// Write only what has changed since the snapshot before, which was taken with --track
    #[arg(long)]
    difference: bool,
    /// Cut the machine's power once it is written, so that its disks stay as they are
    #[arg(long)]
    power_off: bool,
}

pub(crate) fn run(args: &MachineSnapshot) -> Done {
    let failed = |error: io::Error| {
        Error::new(kind_of_path(&error), format!("cannot make {}: {error}", args.folder.display()))
            .hint("name a folder that is not there yet")
    };
    // What is in it is all that the guest knows.
    DirBuilder::new().mode(0o700).create(&args.folder).map_err(failed)?;
    let taken = write(args);
    if taken.is_err() {
        // What is in the way of that is told by the error that brought us here.
        let _ = fs::remove_dir_all(&args.folder);
    }
    let SnapshotTaken { memory_bytes, us, .. } = taken?;
    let folder = args.folder.display().to_string();
    let size = bytes(memory_bytes);
    output::print(format!("{}  {size} of memory, in {} ms\n", output::printable(&folder), us.div_ceil(1000)))
}

fn write(args: &MachineSnapshot) -> Result<SnapshotTaken, Error> {
    let folder = &args.folder;
    let open = |name| create(&folder.join(name)).map_err(failed_to("make a file"));
    let [state, memory] = [open("state")?, open("memory")?];
    let handed = [&state, &memory].map(|file| file.try_clone().map(Into::into));
    let [Ok(state_fd), Ok(memory_fd)] = handed else {
        return Err(failed_to("hand over a file")(io::Error::last_os_error()));
    };
    let kind = if args.difference { SnapshotKind::Difference } else { SnapshotKind::Full };
    let request = SnapshotRequest { kind, track: args.track };
    let control = Control::new(args.control_socket.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed_to("start"))?;
    let told = runtime.block_on(async {
        if args.power_off {
            control.pause().await?;
        }
        let taken = control.snapshot(&request, state_fd, memory_fd).await?;
        if args.power_off {
            control.power(PowerAction::PowerOff).await?;
        }
        Ok(taken)
    });
    let taken = told.map_err(|error| explain(&error))?;
    for file in [&state, &memory] {
        file.sync_all().map_err(failed_to("write the snapshot to the disk"))?;
    }
    Ok(taken)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn explain(error: &control::Error) -> Error {
    let hint = match error {
        control::Error::Closed(_) => {
            "is the machine running? `ec2vmm run --control-socket PATH` makes its socket"
        }
        control::Error::Refused { status: 409, .. } => "take a full one with `--track` first",
        _ => "the machine's log says more",
    };
    let kind =
        if matches!(error, control::Error::Closed(_)) { FailureKind::BadInput } else { FailureKind::Other };
    Error::new(kind, chain(error)).hint(hint)
}
