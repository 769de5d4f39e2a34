//! The clock that people read. Waiting is by the runtime's own timers: those never jump.

use std::time::{SystemTime, UNIX_EPOCH};

use ec2vmm_model::Time;

/// What time it is. It may jump in both directions.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Time;
}

/// The host's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Time {
        let ms = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
        };
        Time::from_unix_ms(ms)
    }
}
