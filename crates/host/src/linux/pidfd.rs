//! A process, held by its pidfd: the number cannot come to mean another.
#![allow(unsafe_code, reason = "registering a descriptor with the runtime, and a call that has no wrapper")]

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, WaitIdOptions},
};
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

    /// How a process that is gone has ended, as far as that can be known. A child is waited for, so that nothing
    /// is left of it. One that was found is somebody else's child: Linux 6.15 and later tell of it.
    pub(super) async fn ending(&self) -> io::Result<Option<ExitStatus>> {
        let pidfd = self.0.get_ref().as_fd();
        match waited(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                let pidfd = pidfd.try_clone_to_owned()?;
                tokio::task::spawn_blocking(move || of_a_stranger(pidfd.as_fd())).await?
            }
            result => result,
        }
    }
}

/// The kernel tells it once whoever's child it is has waited for it.
fn of_a_stranger(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    let Ok(mut info) = info(pidfd) else { return Ok(None) };
    if info.mask & INFO_EXIT == 0 {
        poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::empty())], Some(&WAITED_FOR_MAX))?;
        let Ok(later) = self::info(pidfd) else { return Ok(None) };
        info = later;
    }
    Ok((info.mask & INFO_EXIT != 0).then(|| ExitStatus::from_raw(info.exit_code)))
}

/// The first version of `struct pidfd_info` of linux/pidfd.h.
#[repr(C)]
#[derive(Default)]
struct Info {
    /// What is asked for; what there is.
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    /// As wait(2) has it.
    exit_code: i32,
}

fn info(pidfd: BorrowedFd<'_>) -> io::Result<Info> {
    let mut info = Info { mask: INFO_EXIT, ..Info::default() };
    // SAFETY: the kernel reads and writes as many bytes as the command says, which are those of `Info`.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(info) }
}

/// `PIDFD_GET_INFO`: both ways, 64 bytes, command 11 of `0xff`.
const GET_INFO: libc::Ioctl = 0xc040_ff0b;
const _: () = assert!(size_of::<Info>() == 64);
/// `PIDFD_INFO_EXIT`.
const INFO_EXIT: u64 = 1 << 3;
/// Whoever has children waits for them, or the kernel does it for him.
const WAITED_FOR_MAX: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

#[cfg(test)]
mod tests {
    use std::{io::BufRead, os::unix::process::ExitStatusExt, process::Command};

    use super::{Process, open};

    #[tokio::test]
    async fn the_end_of_a_process() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::new(open(child.id()).unwrap().unwrap()).unwrap();
        child.kill().unwrap();
        process.gone().await.unwrap();
        assert_eq!(process.ending().await.unwrap().and_then(|status| status.signal()), Some(9));
        assert!(child.wait().is_err(), "it was waited for");
        assert!(open(u32::MAX).unwrap().is_none());
    }

    #[tokio::test]
    #[allow(clippy::print_stderr, reason = "a test that leaves something out says so")]
    async fn the_end_of_somebody_elses_child() {
        // It is the shell's, which waits for it.
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 1000 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut number = String::new();
        std::io::BufReader::new(shell.stdout.take().unwrap()).read_line(&mut number).unwrap();
        let process = Process::new(open(number.trim().parse().unwrap()).unwrap().unwrap()).unwrap();
        rustix::process::pidfd_send_signal(process.0.get_ref(), rustix::process::Signal::SYS).unwrap();
        process.gone().await.unwrap();
        match process.ending().await.unwrap() {
            Some(status) => assert_eq!(status.signal(), Some(31)),
            None => eprintln!("SKIPPED: a kernel before 6.15"),
        }
        shell.wait().unwrap();
    }
}
