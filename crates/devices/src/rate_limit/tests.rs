use std::num::NonZeroU64;

use proptest::prelude::*;

use super::{RateLimit, RateLimiter, TokenBucket, bucket::Bucket};
use crate::virtio::testing::FakeTime;

fn bucket(per_second: u64, burst: u64) -> TokenBucket {
    TokenBucket { per_second: NonZeroU64::new(per_second).unwrap(), burst: NonZeroU64::new(burst).unwrap() }
}

fn limiter(bandwidth: Option<TokenBucket>, operations: Option<TokenBucket>) -> (RateLimiter, FakeTime) {
    let time = FakeTime::new();
    (RateLimiter::new(RateLimit { bandwidth, operations }, time.timer()), time)
}

#[test]
fn without_a_limit_it_is_always_open() {
    let (mut limiter, time) = limiter(None, None);
    for _ in 0..1000 {
        assert!(limiter.is_open());
        limiter.charge(u64::MAX);
    }
    assert_eq!((limiter.throttled(), time.alarm_ns()), (0, None));
}

#[test]
fn after_the_burst_operations_come_at_their_rate() {
    let (mut limiter, time) = limiter(None, Some(bucket(100, 5)));
    let mut passed_at = Vec::new();
    while passed_at.len() < 8 {
        if limiter.is_open() {
            limiter.charge(1 << 40);
            passed_at.push(time.now_ms());
        } else {
            time.pass_to_alarm();
        }
    }
    assert_eq!(passed_at, [0, 0, 0, 0, 0, 10, 20, 30]);
    assert_eq!(limiter.throttled(), 3);
}

#[test]
fn what_is_larger_than_the_burst_passes_and_owes() {
    let (mut limiter, time) = limiter(Some(bucket(1000, 100)), None);
    assert!(limiter.is_open());
    limiter.charge(600);
    assert!(!limiter.is_open());
    assert_eq!(time.alarm_ns(), Some(501_000_000), "500 owed, and one to go on with");
    time.pass_ns(500_999_999);
    assert!(!limiter.is_open());
    time.pass_ns(1);
    assert!(limiter.is_open());
    assert_eq!(limiter.throttled(), 1, "asking again is not waiting again");
}

#[test]
fn a_fast_bucket_wakes_a_thousand_times_a_second() {
    let (mut limiter, time) = limiter(Some(bucket(1_000_000_000, 10_000_000)), None);
    limiter.charge(10_000_000);
    assert!(!limiter.is_open());
    assert_eq!(time.alarm_ns(), Some(1_000_000));
    // Unless the burst is smaller than that.
    let (mut limiter, time) = self::limiter(Some(bucket(1_000_000_000, 1000)), None);
    limiter.charge(1000);
    assert!(!limiter.is_open());
    assert_eq!(time.alarm_ns(), Some(1000));
}

#[test]
fn both_buckets_must_hold_something() {
    let (mut limiter, time) = limiter(Some(bucket(1000, 1000)), Some(bucket(1, 1)));
    limiter.charge(2000);
    assert!(!limiter.is_open());
    assert_eq!(time.alarm_ns(), Some(1_001_000_000), "the one that takes longer");
}

#[test]
fn a_change_keeps_what_there_is_as_far_as_it_fits() {
    let (mut limiter, time) = limiter(None, Some(bucket(10, 10)));
    limiter.charge(0);
    let limit = |operations| RateLimit { bandwidth: None, operations };
    // Nine are left, of which four fit.
    limiter.set(limit(Some(bucket(1, 4))));
    for _ in 0..4 {
        assert!(limiter.is_open());
        limiter.charge(0);
    }
    assert!(!limiter.is_open());
    assert_eq!(time.alarm_ns(), Some(1_000_000_000));
    // Whoever waits is woken, and finds the new rate.
    limiter.set(limit(Some(bucket(100, 4))));
    assert_eq!(time.alarm_ns(), Some(0));
    assert!(!limiter.is_open());
    assert_eq!(time.alarm_ns(), Some(10_000_000));
    limiter.set(limit(None));
    assert!(limiter.is_open());
    limiter.set(limit(Some(bucket(1, 4))));
    assert!(limiter.is_open(), "a new bucket is full");
    assert_eq!(limiter.limit(), limit(Some(bucket(1, 4))));
}

#[test]
fn a_change_forgives_what_nobody_could_pay() {
    let (mut limiter, time) = limiter(Some(bucket(1_000_000_000, 1_000_000)), None);
    limiter.charge(500_000_000);
    limiter.set(RateLimit { bandwidth: Some(bucket(10, 100)), operations: None });
    assert!(!limiter.is_open());
    assert_eq!(time.alarm_ns(), Some(10_100_000_000), "one burst");
    // The same again changes nothing.
    limiter.set(limiter.limit());
    assert!(!limiter.is_open());
    assert_eq!(time.alarm_ns(), Some(10_100_000_000));
}

fn sizes() -> impl Strategy<Value = TokenBucket> {
    let number = || prop_oneof![1..100u64, 1..u64::MAX, Just(u64::MAX)];
    (number(), number()).prop_map(|(per_second, burst)| bucket(per_second, burst))
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Pass(u64),
    Charge(u64),
    Resize(TokenBucket),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let number = || prop_oneof![0..2000u64, any::<u64>(), Just(u64::MAX)];
    let act = prop_oneof![
        number().prop_map(Act::Pass),
        number().prop_map(Act::Charge),
        sizes().prop_map(Act::Resize),
    ];
    prop::collection::vec(act, 1..40)
}

proptest! {
    /// The level is what pen and paper give, for every configuration, however time and charges come; and
    /// what waits as long as it is told finds it open, and not a nanosecond earlier.
    #[test]
    fn the_level_is_exact(first in sizes(), acts in acts()) {
        let mut now = 0u64;
        let mut size = first;
        let mut bucket = Bucket::full(size, now);
        let token = 1_000_000_000i128;
        let mut level = i128::from(size.burst.get()) * token;
        for act in acts {
            match act {
                Act::Pass(ns) => {
                    let then = now.saturating_add(ns);
                    // 128 bits of gain, of which no more than is missing counts.
                    let gain = u128::from(then - now) * u128::from(size.per_second.get());
                    let missing = u128::try_from(i128::from(size.burst.get()) * token - level).unwrap();
                    level += i128::try_from(gain.min(missing)).unwrap();
                    now = then;
                    bucket.wait_ns(now);
                }
                Act::Charge(tokens) if bucket.wait_ns(now) == 0 => {
                    bucket.take(tokens);
                    level -= i128::from(tokens) * token;
                }
                Act::Charge(_) => prop_assert!(level < token),
                Act::Resize(new) => {
                    bucket = bucket.resized(new, now);
                    if new != size {
                        let burst = i128::from(new.burst.get()) * token;
                        level = level.clamp(-burst, burst);
                    }
                    size = new;
                }
            }
            prop_assert_eq!(bucket.level(), level);
            let wait = bucket.wait_ns(now);
            prop_assert_eq!(wait == 0, level >= token);
            if let Some(then) = now.checked_add(wait).filter(|_| (1..u64::MAX).contains(&wait)) {
                let mut later = bucket;
                prop_assert_eq!(later.wait_ns(then), 0);
            }
        }
    }

    /// In any time no more passes than the burst, what the time gained, and one thing more; and a limiter
    /// that is always asked lets no less pass than the rate.
    #[test]
    fn no_more_and_no_less_than_promised(
        per_second in 1..1_000_000u64, burst in 1..10_000u64, sizes in prop::collection::vec(1..5000u64, 1..200),
    ) {
        let (mut limiter, time) = limiter(Some(bucket(per_second, burst)), None);
        let (mut passed, mut largest) = (0u128, 0);
        for size in sizes {
            while !limiter.is_open() {
                time.pass_to_alarm();
            }
            limiter.charge(size);
            passed += u128::from(size);
            largest = largest.max(size);
            let gained = u128::from(time.now_ns()) * u128::from(per_second) / 1_000_000_000;
            prop_assert!(passed <= u128::from(burst) + gained + u128::from(largest));
            // Nothing was lost while it waited: the bucket never overflowed.
            let turn = u128::from(burst.min(per_second / 1000 + 1));
            prop_assert!(passed + turn + 1 >= u128::from(burst.min(1)) + gained);
        }
    }
}
