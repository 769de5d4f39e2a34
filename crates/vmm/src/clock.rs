//! The host's clocks: wall time for the guest's real-time clock, and time that only goes on for limits.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ec2vmm_devices::{
    rtc::WallClock,
    time::{Clock, Timer},
};
use vmm_sys_util::timerfd::TimerFd;

/// The host's own.
#[derive(Clone, Copy, Debug)]
pub struct HostClock;

impl WallClock for HostClock {
    fn now_ns(&self) -> i128 {
        let ns = |duration: std::time::Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => ns(since),
            Err(before) => -ns(before.duration()),
        }
    }
}

/// Monotonic time, and a timerfd on it.
#[derive(Debug)]
pub struct MonotonicTimer {
    born: Instant,
    timer: TimerFd,
}

impl MonotonicTimer {
    /// Silent.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new() -> io::Result<Self> {
        Ok(Self { born: Instant::now(), timer: TimerFd::new()? })
    }
}

impl Clock for MonotonicTimer {
    fn now_ns(&self) -> u64 {
        // In 584 years.
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Timer for MonotonicTimer {
    fn wake_after(&mut self, time: Duration) {
        // Zero would stop it, and more than the kernel's 63 bits of seconds is for ever.
        let time = time.clamp(Duration::from_nanos(1), FOR_EVER);
        // Setting it anew is a new edge, so nobody need read it.
        if let Err(error) = self.timer.reset(time, None) {
            log::error!("setting a timer: {error}");
        }
    }

    fn descriptor(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

/// A century.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use std::{os::fd::BorrowedFd, time::Duration};

    use ec2vmm_devices::time::{Clock, Timer};
    use rustix::event::{PollFd, PollFlags, poll};

    use super::MonotonicTimer;

    #[test]
    fn it_wakes_and_can_be_set_anew() {
        let mut timer = MonotonicTimer::new().unwrap();
        let before = timer.now_ns();
        for time in [Duration::MAX, Duration::ZERO, Duration::from_millis(1)] {
            timer.wake_after(time);
        }
        // SAFETY: the timer outlives the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(timer.descriptor()) };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
        assert!(timer.now_ns() >= before + 1_000_000);
    }
}
