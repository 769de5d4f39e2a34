//! Time, as devices that limit or remember need it. Passed in, so that a test is its master.

use std::{os::fd::RawFd, time::Duration};

/// A clock that only goes on.
pub trait Clock: Send {
    /// Nanoseconds since some moment.
    fn now_ns(&self) -> u64;
}

/// A clock that wakes somebody.
pub trait Timer: Clock {
    /// Make [`Self::descriptor`] ready once, after this time. A later call takes the place of an earlier
    /// one.
    fn wake_after(&mut self, time: Duration);

    /// One of the [sources](crate::virtio::VirtioDevice::sources) of whoever waits.
    fn descriptor(&self) -> RawFd;
}
