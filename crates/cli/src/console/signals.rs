//! Signals, as something to poll.
//!
//! Invariant: a signal that was ignored when the command started stays ignored, so that `nohup` and
//! background jobs of scripts work as they do for every program.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use ec2vmm_vmm_api::FailureKind;
use signal_hook::{
    consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    flag,
    low_level::pipe,
};

use crate::error::Error;

/// Signals that end the machine, and the one that continues after a stop.
#[derive(Debug)]
pub(crate) struct Signals {
    wake: UnixStream,
    /// The newest that ends, or 0.
    ending: Arc<AtomicUsize>,
    continued: Arc<AtomicBool>,
}

/// What came.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Came {
    /// The number of a signal that ends the machine.
    pub(crate) ending: Option<u8>,
    /// The command runs on after it was stopped.
    pub(crate) continued: bool,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn catch() -> Result<Self, Error> {
        Self::try_catch()
            .map_err(|error| Error::new(FailureKind::Other, format!("cannot catch signals: {error}")))
    }

    fn try_catch() -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let (ending, continued) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let ignored = ignored(&std::fs::read_to_string("/proc/self/status")?);
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            let number = usize::try_from(signal).map_err(io::Error::other)?;
            if ignored & (1 << number.saturating_sub(1)) == 0 {
                // The order in which they are registered is the order in which they run.
                flag::register_usize(signal, Arc::clone(&ending), number)?;
                pipe::register(signal, waker.try_clone()?)?;
            }
        }
        flag::register(SIGCONT, Arc::clone(&continued))?;
        pipe::register(SIGCONT, waker)?;
        Ok(Self { wake, ending, continued })
    }

    /// What came since the last time.
    pub(crate) fn take(&mut self) -> Came {
        let mut bytes = [0; 64];
        while self.wake.read(&mut bytes).is_ok_and(|read| read > 0) {}
        let number = self.ending.swap(0, Ordering::AcqRel);
        Came {
            ending: u8::try_from(number).ok().filter(|&number| number != 0),
            continued: self.continued.swap(false, Ordering::AcqRel),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// `SIGHUP`, as [`Came::ending`] has it.
pub(crate) const HANG_UP: u8 = 1;

/// proc(5): bit N - 1 of `SigIgn` is signal N.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::ignored;

    #[test]
    fn ignored_signals() {
        assert_eq!(ignored("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\tff\n"), 0x1001);
        assert_eq!(ignored(""), 0);
    }
}
