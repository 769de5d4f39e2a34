//! Descriptors that the process was born with, each named by number in its configuration.
//!
//! Invariant: all of them are taken before the process opens anything of its own. A number that was not open
//! at birth is then an error, and never a descriptor that has come to that number since.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use ec2vmm_vmm_api::{
    MachineConfig, Sandbox,
    config::{Boot, Fd, MemoryBackend},
};
use rustix::fd::BorrowedFd;

use crate::console;

/// A number in the configuration names no descriptor that could be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// Nothing is open there.
    #[error("descriptor {fd} for {what} is not open")]
    NotOpen {
        /// The number.
        fd: Fd,
        /// What it was to be.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// Two things cannot own one descriptor.
    #[error("descriptor {fd} for {what} is used twice")]
    Twice {
        /// The number.
        fd: Fd,
        /// What it was to be.
        what: &'static str,
    },
}

/// What a machine uses, open.
#[derive(Debug)]
pub struct Descriptors {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// A network namespace to be in.
    pub network: Option<OwnedFd>,
    /// Kernel and initrd, where they are not on the first disk.
    pub boot: Option<BootFiles>,
    /// A snapshot to go on from.
    pub restore: Option<RestoreFiles>,
    /// The layers of each disk.
    pub disks: Vec<Vec<OwnedFd>>,
    /// The queues of each network interface's tap.
    pub taps: Vec<Vec<OwnedFd>>,
    /// The listening socket of guest and host sockets.
    pub vsock: Option<OwnedFd>,
    /// The console's ends.
    pub console: console::Ends,
    /// The listening socket for control.
    pub control: Option<OwnedFd>,
    /// The owner holds its other end.
    pub lifeline: Option<OwnedFd>,
}

/// A snapshot's files, open.
#[derive(Debug)]
pub struct RestoreFiles {
    /// The state.
    pub state: OwnedFd,
    /// The memory: a full file, then differences.
    pub memory: Vec<OwnedFd>,
    /// What a pager needs, where the memory is not mapped.
    pub pager: Option<PagerFiles>,
}

/// What a pager needs, open.
#[derive(Debug)]
pub struct PagerFiles {
    /// `/dev/userfaultfd`.
    pub device: Option<OwnedFd>,
    /// A working set to read.
    pub prefetch: Option<OwnedFd>,
    /// A working set to write.
    pub record: Option<OwnedFd>,
}

/// Kernel and initrd, open.
#[derive(Debug)]
pub struct BootFiles {
    /// bzImage or ELF.
    pub kernel: OwnedFd,
    /// Initial RAM disk.
    pub initrd: Option<OwnedFd>,
}

impl Descriptors {
    /// Takes all that `config` names, but for the ways of reporting, which were taken before.
    ///
    /// # Errors
    /// One is not open, or named twice.
    pub fn take(config: &MachineConfig, inherited: &mut Inherited) -> Result<Self, InheritedError> {
        let mut take = |fd: Fd, what: &'static str| inherited.take(fd, what);
        Ok(Self {
            kvm: take(config.kvm, "/dev/kvm")?,
            network: match config.sandbox {
                Sandbox::Full { network: Some(fd), .. } => Some(take(fd, "the network namespace")?),
                _ => None,
            },
            boot: match &config.boot {
                Boot::Disk { .. } => None,
                Boot::Files { kernel, initrd, .. } => Some(BootFiles {
                    kernel: take(*kernel, "the kernel")?,
                    initrd: initrd.map(|fd| take(fd, "the initrd")).transpose()?,
                }),
            },
            restore: match &config.restore {
                None => None,
                Some(restore) => Some(RestoreFiles {
                    state: take(restore.state, "the snapshot's state")?,
                    memory: restore
                        .memory
                        .iter()
                        .map(|fd| take(*fd, "the snapshot's memory"))
                        .collect::<Result<_, _>>()?,
                    pager: match &restore.backend {
                        MemoryBackend::Mapped => None,
                        MemoryBackend::Userfaultfd { device, prefetch, record } => Some(PagerFiles {
                            device: device.map(|fd| take(fd, "/dev/userfaultfd")).transpose()?,
                            prefetch: prefetch.map(|fd| take(fd, "a working set")).transpose()?,
                            record: record.map(|fd| take(fd, "a working set to be")).transpose()?,
                        }),
                    },
                }),
            },
            disks: config
                .disks
                .iter()
                .map(|disk| disk.layers.iter().map(|layer| take(layer.fd, "a disk")).collect())
                .collect::<Result<_, _>>()?,
            taps: config
                .nets
                .iter()
                .map(|net| net.taps.iter().map(|&tap| take(tap, "a tap")).collect())
                .collect::<Result<_, _>>()?,
            vsock: config.vsock.as_ref().map(|vsock| take(vsock.listener, "the vsock socket")).transpose()?,
            console: console::Ends {
                terminal: config.console.map(|fd| take(fd, "the console")).transpose()?,
                log: config.console_log.map(|fd| take(fd, "the console's log")).transpose()?,
                listener: config.console_listener.map(|fd| take(fd, "the console's socket")).transpose()?,
            },
            control: config.control.map(|fd| take(fd, "the control socket")).transpose()?,
            lifeline: config.lifeline.map(|fd| take(fd, "the lifeline")).transpose()?,
        })
    }
}

/// Hands each inherited descriptor out once. The process must have one of these only.
#[derive(Debug, Default)]
pub struct Inherited {
    taken: BTreeSet<Fd>,
}

impl Inherited {
    /// Takes a descriptor for `what`, and keeps it from any process that this one might start.
    ///
    /// # Errors
    /// It is not open, or was taken before. Standard streams cannot be taken.
    pub fn take(&mut self, fd: Fd, what: &'static str) -> Result<OwnedFd, InheritedError> {
        if fd <= libc::STDERR_FILENO {
            return Err(InheritedError::NotOpen { fd, what, source: io::ErrorKind::InvalidInput.into() });
        }
        if !self.taken.insert(fd) {
            return Err(InheritedError::Twice { fd, what });
        }
        let not_open = |errno: rustix::io::Errno| InheritedError::NotOpen { fd, what, source: errno.into() };
        // SAFETY: the borrow ends with this statement, and a number that is not open is an error.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).map_err(not_open)?;
        // SAFETY: it is open, nothing else in this process owns it (it was inherited, and `taken`
        // lets it out once), and whoever gets it closes it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::{Inherited, InheritedError};

    #[test]
    fn a_descriptor_is_given_once_and_only_if_it_is_open() {
        let fd = tempfile::tempfile().unwrap().into_raw_fd();
        let mut inherited = Inherited::default();
        let taken = inherited.take(fd, "a disk").unwrap();
        assert!(matches!(inherited.take(fd, "a disk").unwrap_err(), InheritedError::Twice { .. }));
        drop(taken);
        assert!(matches!(
            Inherited::default().take(1 << 20, "a disk").unwrap_err(),
            InheritedError::NotOpen { .. }
        ));
        inherited.take(0, "standard input").unwrap_err();
    }
}
