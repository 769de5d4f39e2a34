//! Errors as people see them: one line that says what and where, one that says what to do, and an exit
//! status.

use std::{io::Write, process::ExitCode};

use ec2vmm_host::Explained;
use ec2vmm_vmm_api::{Exit, Failure, FailureKind};

use crate::{
    client,
    output::{self, printable},
};

/// An error that ends the command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Something failed, and here is what.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// The daemon says no, or nothing.
    #[error(transparent)]
    Daemon(#[from] client::Error),
    /// What was named, or waited for, is not so.
    #[error("{message}")]
    Astray {
        /// What.
        trouble: Trouble,
        /// What and where.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// It has been told already, and this is the exit status.
    #[error("some of it failed")]
    Told(u8),
    /// Whoever read our output reads no more; there is nobody to tell.
    #[error("the output was closed")]
    OutputClosed,
}

/// What is not as the command line has it; each has an exit status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Trouble {
    /// A name that names nothing, or more than one thing.
    Name,
    /// An instance is in a state from which it will not come to what is waited for.
    State,
    /// A file is there already.
    FileExists,
    /// Time is up.
    Timeout,
}

impl Error {
    /// Something is not as the command line has it.
    pub(crate) fn astray(trouble: Trouble, message: impl Into<String>) -> Self {
        Self::Astray { trouble, message: message.into(), hint: None }
    }

    /// An error in words.
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self::Failed(Failure { kind, message: message.into(), hint: None })
    }

    /// With what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        match &mut self {
            Self::Failed(failure) => failure.hint = Some(hint.into()),
            Self::Astray { hint: place, .. } => *place = Some(hint.into()),
            Self::Daemon(_) | Self::Told(_) | Self::OutputClosed => {}
        }
        self
    }

    /// The exit status.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Failed(failure) => Exit::Failed(failure.kind).code(),
            Self::Daemon(error) => error.code(),
            Self::Astray { trouble: Trouble::Name, .. } => 42,
            Self::Astray { trouble: Trouble::State, .. } => 47,
            Self::Astray { trouble: Trouble::FileExists, .. } => FailureKind::BadInput.code(),
            Self::Astray { trouble: Trouble::Timeout, .. } => FailureKind::Timeout.code(),
            Self::Told(code) => *code,
            Self::OutputClosed => output::CLOSED,
        }
    }

    /// Tells people on standard error.
    pub(crate) fn report(&self) -> ExitCode {
        let (message, hint) = match self {
            Self::Failed(Failure { kind, message, hint }) => {
                (message.clone(), hint.clone().or_else(|| usual_hint(*kind).map(str::to_owned)))
            }
            Self::Daemon(error) => (chain(error), error.hint()),
            Self::Astray { message, hint, .. } => (message.clone(), hint.clone()),
            Self::Told(_) | Self::OutputClosed => return self.code().into(),
        };
        let hint = hint.map(|hint| format!("hint: {}\n", printable(&hint))).unwrap_or_default();
        // With standard error closed there is nobody left to tell; the exit status still says it.
        let _ = write!(std::io::stderr().lock(), "ec2vmm: {}\n{hint}", printable(&message));
        self.code().into()
    }
}

/// What can be done about a kind of failure where nothing better is known.
fn usual_hint(kind: FailureKind) -> Option<&'static str> {
    Some(match kind {
        FailureKind::Usage => "`ec2vmm run --help` explains every option",
        FailureKind::NoSuchImage => "check the name; `scripts/build-image debian-12` makes an image",
        FailureKind::NotADisk => {
            "a raw or qcow2 disk image is wanted; `qemu-img convert -O qcow2 OLD NEW` makes one of others"
        }
        FailureKind::BrokenQcow2 => "`qemu-img check FILE` says more; or fetch the file again",
        FailureKind::BrokenPartitionTable => "`sgdisk --verify FILE` says more; or fetch the file again",
        FailureKind::BrokenFileSystem => "`ec2vmm image inspect FILE` shows which; or fetch the file again",
        FailureKind::NoKernel => {
            "`ec2vmm image inspect FILE` shows what is there; or name a kernel with `--kernel`"
        }
        FailureKind::WrongKernel => "use the image or kernel for x86-64 (amd64)",
        FailureKind::Permission => "check the file's owner and mode, or run as root",
        FailureKind::TripleFault => "the guest's processor gave up; the registers above tell where",
        FailureKind::GuestPanic => "the kernel's last words are on the console",
        FailureKind::KvmInternalError => {
            "this host's KVM cannot run this guest; try another host, or `scripts/lab`"
        }
        FailureKind::UnknownType => "`ec2vmm types` lists them all",
        FailureKind::Memory | FailureKind::Cpus => "choose another `--type`, or `--cpus` and `--memory`",
        FailureKind::NoKvm | FailureKind::NoHardwareVirtualization => {
            "`scripts/lab` brings its own virtualization"
        }
        FailureKind::NoTap | FailureKind::TapBusy => "`ip tuntap show` lists the taps of this host",
        FailureKind::DiskInUse => "end the other machine, or work on a copy of the file",
        FailureKind::BadInput => {
            "check the name and what the file holds; `ec2vmm run --help` says what is wanted"
        }
        FailureKind::BrokenSnapshot => "take the snapshot's files from where they were copied from",
        FailureKind::SnapshotVersion => "restore with the ec2vmm that wrote it, or a later one",
        FailureKind::SnapshotCpu => "restore on a host with the same or a later processor of the same maker",
        FailureKind::SnapshotMachine => "give the machine what it had when the snapshot was taken",
        FailureKind::SnapshotDisk => "restore with the disks as they were when the snapshot was taken",
        FailureKind::Sandbox => {
            "`--sandbox filters` goes on with system call filters alone; see docs/SECURITY.md"
        }
        FailureKind::NoUserfaultfd => "`--memory-backend mapped` needs none",
        FailureKind::Other | FailureKind::Timeout | FailureKind::ForbiddenCall => return None,
    })
}

impl<E: Explained> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Failed(Failure { kind: error.kind(), message: chain(&error), hint: error.hint() })
    }
}

/// For `map_err`: the host's system failed to do something.
pub(crate) fn failed_to(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    let message = format!("cannot {what}");
    move |error| Error::new(FailureKind::Other, format!("{message}: {error}"))
}

/// What it is when a file or folder that somebody has named cannot be had.
pub(crate) fn kind_of_path(error: &std::io::Error) -> FailureKind {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => FailureKind::Permission,
        _ => FailureKind::BadInput,
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |message, cause| format!("{message}: {cause}"))
}
