//! The host's wall clock, for the guest's real-time clock.

use std::time::{SystemTime, UNIX_EPOCH};

use ec2vmm_devices::rtc::WallClock;

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
