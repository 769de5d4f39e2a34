//! Why the daemon does not start, or not go on: one line, a hint, an exit status of its own.

use std::{
    error::Error,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use ec2vmm_host::host;
use ec2vmm_store::OpenError;

/// Why the daemon does not start, or not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The store says no.
    #[error("the database cannot be used")]
    Store(#[from] OpenError),
    /// Somebody answers on the socket.
    #[error("another daemon answers on {}", .path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// Real machines need it.
    #[error("only root can run machines on this host")]
    NotRoot,
    /// Real machines need it.
    #[error("there is no cgroup v2 at {}", .path.display())]
    NoCgroup2 {
        /// Where it should be.
        path: PathBuf,
    },
    /// A folder cannot be made or written to.
    #[error("cannot write to the folder {}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}", .path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What systemd, or the daemon before, has passed is no socket.
    #[error("the socket that was passed cannot be used")]
    Passed {
        /// Why.
        source: io::Error,
    },
    /// The host lacks something.
    #[error("this host cannot run machines")]
    Lacks {
        /// What.
        source: Box<dyn Error + Send + Sync>,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The host's folders, control groups or networks cannot be had.
    #[error("this host cannot be taken")]
    Host(#[source] ec2vmm_host::host::Error),
    /// The cloud cannot take over.
    #[error("cannot take over what is there")]
    Cloud(#[from] ec2vmm_cloud::Error),
    /// No threads, no timers.
    #[error("cannot start the runtime")]
    Runtime {
        /// Why.
        source: io::Error,
    },
    /// The program that should go on cannot be executed.
    #[error("cannot execute {}", .path.display())]
    Exec {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Refusal {
    /// The process's exit status.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Store(OpenError::InUse { .. })
            | Self::SocketInUse { .. }
            | Self::Host(host::Error::InUse { .. }) => 10,
            Self::NotRoot => 11,
            Self::NoCgroup2 { .. } => 12,
            Self::Store(OpenError::Newer { .. }) => 13,
            Self::Store(OpenError::Damaged { .. } | OpenError::NotOurs { .. }) => 14,
            Self::Folder { .. } | Self::Socket { .. } | Self::Passed { .. } => 15,
            Self::Lacks { .. } | Self::Host(_) => 16,
            Self::Store(_) | Self::Cloud(_) | Self::Runtime { .. } | Self::Exec { .. } => 1,
        }
    }

    /// What to do about it.
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Store(error) => return error.hint().map(str::to_owned),
            Self::Lacks { hint, .. } => {
                let hint = hint.clone().unwrap_or_else(|| "run it with --host simulated".to_owned());
                return Some(hint);
            }
            Self::Host(
                host::Error::Image { hint, .. }
                | host::Error::NoRoom { hint, .. }
                | host::Error::Other { hint, .. },
            ) => return hint.clone(),
            Self::Host(host::Error::NotRunning(_) | host::Error::Ended(_)) => return None,
            Self::Host(host::Error::InUse { .. }) => {
                "one daemon has it; stop that one, or use another --cgroup and --run-dir"
            }
            Self::Cloud(error) => return error.hint(),
            Self::SocketInUse { .. } => "stop that one, or use another --socket",
            Self::NotRoot => "run it as root, or with --host simulated",
            Self::NoCgroup2 { .. } => {
                "boot with systemd.unified_cgroup_hierarchy=1, or run it with --host simulated"
            }
            Self::Folder { source, .. } | Self::Socket { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                "run it as root, or name folders of your own with --state-dir and --run-dir"
            }
            Self::Socket { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                "what is there is no socket: move it away, or use another --socket"
            }
            Self::Socket { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                "a socket's path is at most 107 bytes long: use a shorter --socket or --run-dir"
            }
            Self::Folder { .. } => "check that it is a folder, and that there is room",
            Self::Passed { .. } => "the socket unit must have ListenStream= and Accept=no",
            Self::Exec { .. } => "install the program again; systemd, or you, start it then",
            Self::Socket { .. } | Self::Runtime { .. } => return None,
        };
        Some(hint.to_owned())
    }

    /// Tells people on standard error.
    pub(crate) fn report(&self) -> ExitCode {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        let hint = self.hint().map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
        // With standard error closed there is nobody left to tell; the exit status still says it.
        let _ = write!(io::stderr().lock(), "ec2vmmd: {}\n{hint}", line.replace(['\n', '\r'], " "));
        self.code().into()
    }
}
