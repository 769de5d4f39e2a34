//! How fast a type's network is: AWS's baseline, and a burst where the type has one.
//!
//! A type that is "Up to N Gigabit" keeps N for a time and then falls back to its baseline. AWS says "5 to
//! 60 minutes" and publishes no number per type, so the burst here is five minutes of what N is beyond the
//! baseline. The speed during a burst is not held to N.

use std::num::NonZeroU64;

use ec2vmm_model::InstanceType;
use ec2vmm_vmm_api::config::{RateLimit, TokenBucket};

/// The limit of each direction; none where AWS publishes no baseline.
pub(super) fn limit(kind: &InstanceType) -> RateLimit {
    let peak = kind.network_performance.strip_prefix("Up to ").and_then(|rest| rest.strip_suffix(" Gigabit"));
    let peak = peak.and_then(|gbps| gbps.parse().ok()).map(bytes_per_second);
    RateLimit {
        bandwidth: kind.network_baseline_gbps.and_then(|gbps| bucket(bytes_per_second(gbps), peak)),
        operations: None,
    }
}

fn bucket(baseline: u64, peak: Option<u64>) -> Option<TokenBucket> {
    let beyond = peak.map_or(0, |peak| peak.saturating_sub(baseline));
    let burst = beyond.saturating_mul(BURST_SECONDS).max(baseline / STEADY_BURSTS_PER_SECOND);
    Some(TokenBucket { per_second: NonZeroU64::new(baseline)?, burst: NonZeroU64::new(burst)? })
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a catalogue's speeds are small and not negative"
)]
fn bytes_per_second(gbps: f64) -> u64 {
    (gbps * 1e9 / 8.0).round() as u64
}

const BURST_SECONDS: u64 = 300;
/// A type without bursts takes what came together, of a tenth of a second.
const STEADY_BURSTS_PER_SECOND: u64 = 10;

#[cfg(test)]
mod tests {
    use ec2vmm_model::InstanceType;

    use super::limit;

    fn speed(name: &str) -> Option<(u64, u64)> {
        let bucket = limit(&InstanceType::find(name).unwrap()).bandwidth?;
        Some((bucket.per_second.get(), bucket.burst.get()))
    }

    #[test]
    fn baseline_and_burst() {
        // 64 Mbit/s, and five minutes of 5 Gbit/s less that.
        assert_eq!(speed("t3.micro"), Some((8_000_000, (625_000_000 - 8_000_000) * 300)));
        assert_eq!(speed("c5.24xlarge"), Some((3_125_000_000, 312_500_000)));
    }

    #[test]
    fn every_published_baseline_is_a_limit() {
        for kind in InstanceType::all() {
            let limited = limit(&kind).bandwidth.is_some();
            assert_eq!(limited, kind.network_baseline_gbps.is_some_and(|gbps| gbps > 0.0), "{}", kind.name);
        }
    }
}
