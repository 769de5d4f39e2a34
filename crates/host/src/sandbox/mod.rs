//! Which sandbox a machine process gets. It enters it by itself; here it is chosen, and what it needs from
//! outside is made.
//!
//! Invariant: never a weaker one than was asked for. Where the host does not have it, there is no machine.

mod probe;

use std::{fs::File, io, ops::RangeInclusive, os::fd::OwnedFd};

use ec2vmm_vmm_api::FailureKind;
pub use ec2vmm_vmm_api::SandboxKind;
use nix::sched::CloneFlags;

use crate::{Explained, spawn::Namespaces};

/// [`ec2vmm_vmm_api::Sandbox`] with open descriptors.
#[derive(Debug)]
pub enum Sandbox {
    /// See [`ec2vmm_vmm_api::Sandbox::Full`].
    Full {
        /// User and group id, which nobody else has.
        id: u32,
        /// See [`empty_network`]; without one the process makes its own.
        network: Option<OwnedFd>,
    },
    /// See [`ec2vmm_vmm_api::Sandbox::User`].
    User,
    /// See [`ec2vmm_vmm_api::Sandbox::Landlock`].
    Landlock,
    /// See [`ec2vmm_vmm_api::Sandbox::Filters`].
    Filters,
    /// See [`ec2vmm_vmm_api::Sandbox::Off`].
    Off,
}

/// There is no sandbox as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It needs root.
    #[error("the sandbox `full` needs root")]
    NotRoot,
    /// The host has none that an ordinary user may have.
    #[error("this host has neither user namespaces ({0}) nor Landlock")]
    Nothing(#[source] io::Error),
    /// No user namespaces.
    #[error("this host allows no user namespaces")]
    NoUserNamespaces(#[source] io::Error),
    /// No Landlock.
    #[error("this host has no Landlock")]
    NoLandlock,
    /// No empty network.
    #[error("cannot make an empty network namespace")]
    Network(#[source] io::Error),
}

impl Explained for Error {
    fn kind(&self) -> FailureKind {
        FailureKind::Sandbox
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Network(_) => return None,
            Self::NotRoot => {
                "leave the choice to the host: it takes the strongest that this user may have".into()
            }
            Self::Nothing(_) | Self::NoLandlock | Self::NoUserNamespaces(_) => {
                "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns) or boot with `lsm=landlock,...`; \
                 `--sandbox filters` goes on with system call filters alone"
                    .into()
            }
        })
    }
}

impl Sandbox {
    /// The one of this kind, or the strongest that this user may have here, for a machine that lives no
    /// longer than this process.
    ///
    /// # Errors
    /// There is none.
    pub fn for_this_process(wanted: Option<SandboxKind>) -> Result<Self, Error> {
        let is_root = rustix::process::geteuid().is_root();
        match wanted {
            Some(SandboxKind::Full) if !is_root => Err(Error::NotRoot),
            Some(SandboxKind::User) => {
                probe::user_namespaces().map(|()| Self::User).map_err(Error::NoUserNamespaces)
            }
            Some(SandboxKind::Landlock) if !probe::landlock() => Err(Error::NoLandlock),
            Some(kind) => Ok(Self::of(kind, own_id(), None)),
            None if is_root => Ok(Self::of(SandboxKind::Full, own_id(), None)),
            None => match probe::user_namespaces() {
                Ok(()) => Ok(Self::User),
                Err(_) if probe::landlock() => Ok(Self::Landlock),
                Err(error) => Err(Error::Nothing(error)),
            },
        }
    }

    /// The one of this kind.
    pub fn of(kind: SandboxKind, id: u32, network: Option<OwnedFd>) -> Self {
        match kind {
            SandboxKind::Full => Self::Full { id, network },
            SandboxKind::User => Self::User,
            SandboxKind::Landlock => Self::Landlock,
            SandboxKind::Filters => Self::Filters,
            SandboxKind::Off => Self::Off,
        }
    }

    /// Which it is.
    pub fn kind(&self) -> SandboxKind {
        match self {
            Self::Full { .. } => SandboxKind::Full,
            Self::User => SandboxKind::User,
            Self::Landlock => SandboxKind::Landlock,
            Self::Filters => SandboxKind::Filters,
            Self::Off => SandboxKind::Off,
        }
    }

    /// What the process must be born into.
    pub(crate) fn namespaces(&self) -> Namespaces {
        match self {
            Self::Full { .. } => Namespaces::Processes,
            Self::User => Namespaces::UsersAndProcesses,
            Self::Landlock | Self::Filters | Self::Off => Namespaces::None,
        }
    }
}

/// A network namespace with nothing in it, for all machines: making one for each would take each start half
/// a millisecond and a lock of the whole host, and nobody can use it. It lasts as long as somebody holds it.
///
/// # Errors
/// The host makes none.
pub fn empty_network() -> Result<OwnedFd, Error> {
    // A thread has a network of its own if it wants to; this one has nothing else to do.
    let made = std::thread::scope(|scope| {
        let make = || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        scope.spawn(make).join()
    });
    let made = made.unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")));
    made.map(OwnedFd::from).map_err(Error::Network)
}

/// Ids for machines of a daemon, unless it is told others: systemd's table of ids has them as unused.
pub const DAEMON_IDS: RangeInclusive<u32> = 1_879_048_192..=1_879_113_727;
/// The first of the ids for machines of single processes, one for each number that a process can have.
const PROCESS_IDS: u32 = 1_900_000_000;

/// An id that no other living process of this host has for its machine.
fn own_id() -> u32 {
    PROCESS_IDS + std::process::id()
}

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that leaves something out says so")]
mod tests {
    use ec2vmm_vmm_api::SandboxKind;

    use super::{Error, Sandbox, empty_network};

    #[test]
    fn an_empty_network_is_none_of_ours() {
        match empty_network() {
            Ok(network) => {
                let inode =
                    |file: &std::fs::File| std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
                let ours = std::fs::File::open("/proc/self/ns/net").unwrap();
                assert_ne!(inode(&network.into()), inode(&ours));
            }
            Err(error) => eprintln!("SKIPPED: {error}"),
        }
    }

    #[test]
    fn the_strongest_that_there_is() {
        let root = rustix::process::geteuid().is_root();
        match Sandbox::for_this_process(None) {
            Ok(Sandbox::Full { id, network: None }) => {
                assert!(root);
                assert_eq!(id, super::PROCESS_IDS + std::process::id());
            }
            Ok(Sandbox::User | Sandbox::Landlock) => assert!(!root),
            Err(Error::Nothing(_)) => assert!(!root),
            other => panic!("{other:?}"),
        }
        for kind in [SandboxKind::Filters, SandboxKind::Off] {
            assert_eq!(Sandbox::for_this_process(Some(kind)).unwrap().kind(), kind);
        }
        if !root {
            let refused = Sandbox::for_this_process(Some(SandboxKind::Full));
            assert!(matches!(refused, Err(Error::NotRoot)));
        }
    }
}
