//! How much may pass in a time: token buckets for bytes and for operations.
//!
//! A bucket holds `burst` tokens, is full at the start, and gains `per_second` of them evenly. A limiter
//! is open while each of its buckets holds at least one token; what passes then takes its tokens, also
//! those that are not there yet: the next has to wait until they are paid. So something larger than the
//! burst passes too, small things do not overtake it for ever, and in any time no more passes than the
//! burst, what the time gained, and one thing more.
//!
//! The arithmetic is exact: levels count billionths of a token, of which a nanosecond gains `per_second`.
//! Every configuration and every time fits.

mod bucket;
#[cfg(test)]
mod tests;

use std::{num::NonZeroU64, os::fd::RawFd, time::Duration};

use self::bucket::Bucket;
use crate::time::Timer;

/// How fast tokens come, and how many are kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TokenBucket {
    /// Tokens a second: bytes or operations.
    pub per_second: NonZeroU64,
    /// The most tokens there can be at once, and what there are at the start.
    pub burst: NonZeroU64,
}

/// What is limited; what is none is not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RateLimit {
    /// A token a byte.
    pub bandwidth: Option<TokenBucket>,
    /// A token a request or a frame.
    pub operations: Option<TokenBucket>,
}

/// A limit at work.
pub struct RateLimiter {
    timer: Box<dyn Timer>,
    limit: RateLimit,
    bandwidth: Option<Bucket>,
    operations: Option<Bucket>,
    /// Shut until then: the timer has been set.
    shut_until_ns: Option<u64>,
    /// How often it has shut.
    throttled: u64,
}

impl RateLimiter {
    /// With full buckets.
    pub fn new(limit: RateLimit, timer: Box<dyn Timer>) -> Self {
        let now = timer.now_ns();
        let [bandwidth, operations] =
            [limit.bandwidth, limit.operations].map(|bucket| bucket.map(|bucket| Bucket::full(bucket, now)));
        Self { timer, limit, bandwidth, operations, shut_until_ns: None, throttled: 0 }
    }

    /// What is limited now.
    pub fn limit(&self) -> RateLimit {
        self.limit
    }

    /// From now on another limit holds. A bucket that was there keeps its tokens as far as the new burst
    /// goes, and owes no more than one such burst; one that was not is full. The timer is set at once, so
    /// that whoever waits looks again.
    pub fn set(&mut self, limit: RateLimit) {
        let now = self.timer.now_ns();
        let change = |old: Option<Bucket>, new: Option<TokenBucket>| match (old, new) {
            (Some(old), Some(new)) => Some(old.resized(new, now)),
            (None, Some(new)) => Some(Bucket::full(new, now)),
            (_, None) => None,
        };
        self.bandwidth = change(self.bandwidth.take(), limit.bandwidth);
        self.operations = change(self.operations.take(), limit.operations);
        self.limit = limit;
        if self.shut_until_ns.take().is_some() {
            self.timer.wake_after(Duration::ZERO);
        }
    }

    /// Whether something may pass now. If not, the timer is set to when it may: until then every answer
    /// is no.
    pub fn is_open(&mut self) -> bool {
        if self.bandwidth.is_none() && self.operations.is_none() {
            return true;
        }
        let now = self.timer.now_ns();
        if self.shut_until_ns.is_some_and(|until| now < until) {
            return false;
        }
        self.shut_until_ns = None;
        let waits = [&mut self.bandwidth, &mut self.operations]
            .map(|bucket| bucket.as_mut().map_or(0, |bucket| bucket.wait_ns(now)));
        let wait = waits.into_iter().max().unwrap_or(0);
        if wait == 0 {
            return true;
        }
        self.throttled = self.throttled.saturating_add(1);
        self.shut_until_ns = Some(now.saturating_add(wait));
        self.timer.wake_after(Duration::from_nanos(wait));
        false
    }

    /// One operation of so many bytes has passed.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
    }

    /// Becomes ready when [`Self::is_open`] is to be asked again.
    pub fn descriptor(&self) -> RawFd {
        self.timer.descriptor()
    }

    /// How often something had to wait.
    pub fn throttled(&self) -> u64 {
        self.throttled
    }
}
