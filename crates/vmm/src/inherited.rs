//! Descriptors that the process was born with, each named by number in its configuration.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use ec2vmm_vmm_api::config::Fd;
use rustix::fd::BorrowedFd;

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
