//! Rate limits as the contract has them, made into those of devices.

use std::io;

use ec2vmm_devices::rate_limit::{RateLimit, RateLimiter, TokenBucket};
use ec2vmm_vmm_api::config;

use crate::clock::MonotonicTimer;

/// The same limit, for a device.
pub fn understand(limit: config::RateLimit) -> RateLimit {
    let bucket = |config::TokenBucket { per_second, burst }| TokenBucket { per_second, burst };
    let config::RateLimit { bandwidth, operations } = limit;
    RateLimit { bandwidth: bandwidth.map(bucket), operations: operations.map(bucket) }
}

/// A limit at work, on the host's time.
///
/// # Errors
/// Too many open files.
pub fn limiter(limit: config::RateLimit) -> io::Result<RateLimiter> {
    Ok(RateLimiter::new(understand(limit), Box::new(MonotonicTimer::new()?)))
}
