//! The present.

use std::time::{SystemTime, UNIX_EPOCH};

use ec2vmm_model::Time;

/// What this host's clock shows.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
