//! A process, held by its pidfd: the number cannot come to mean another.
#![allow(unsafe_code, reason = "registering a descriptor with the runtime")]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    process::ExitStatus,
};

use rustix::process::{Pid, PidfdFlags, WaitIdOptions};
use tokio::io::{Interest, unix::AsyncFd};

use crate::spawn::waited;

/// A process whose end can be waited for.
#[derive(Debug)]
pub(super) struct Process(AsyncFd<OwnedFd>);

/// Opens a process by its number; none if there is no such process any more.
pub(super) fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Process {
    pub(super) fn new(pidfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is open, and stays so until it is dropped, which only `AsyncFd` does, after
        // it has taken it from the runtime.
        let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Waits until the process is gone.
    pub(super) async fn gone(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }

    /// Waits for a child that is gone, so that nothing is left of it, and says how it ended. One that was found
    /// is somebody else's child.
    pub(super) fn reap(&self) -> io::Result<Option<ExitStatus>> {
        match waited(self.0.get_ref().as_fd(), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Command};

    use super::{Process, open};

    #[tokio::test]
    async fn the_end_of_a_process() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::new(open(child.id()).unwrap().unwrap()).unwrap();
        child.kill().unwrap();
        process.gone().await.unwrap();
        assert_eq!(process.reap().unwrap().and_then(|status| status.signal()), Some(9));
        assert_eq!(process.reap().unwrap(), None);
        assert!(child.wait().is_err(), "it was waited for");
        assert!(open(u32::MAX).unwrap().is_none());
    }
}
