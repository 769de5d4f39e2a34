//! `RATE[/BURST]`: so much a second, and so much at once. `iops=RATE,bps=RATE`: a limit.

use std::{num::NonZeroU64, str::FromStr};

use ec2vmm_vmm_api::config::{RateLimit, TokenBucket};

use super::{size::Size, split_commas};

/// A limit of requests and bytes, as typed: `iops=RATE[/BURST]`, `bps=RATE[/BURST]`, or both.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Limit(pub(crate) RateLimit);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut limit = RateLimit::default();
        for part in split_commas(text) {
            match part.split_once('=') {
                Some(("iops", rate)) if limit.operations.is_none() => limit.operations = Some(count(rate)?),
                Some(("bps", rate)) if limit.bandwidth.is_none() => limit.bandwidth = Some(bytes(rate)?),
                _ => {
                    return Err(format!(
                        "`{part}` is not understood: iops=RATE[/BURST] and bps=RATE[/BURST] are, each once"
                    ));
                }
            }
        }
        Ok(Self(limit))
    }
}

/// Operations a second.
pub(crate) fn count(text: &str) -> Result<TokenBucket, String> {
    bucket(text, |number| number.parse().map_err(|_| format!("`{number}` is not a whole number")))
}

/// Bytes a second.
pub(crate) fn bytes(text: &str) -> Result<TokenBucket, String> {
    bucket(text, |size| size.parse::<Size>().map(|size| size.bytes))
}

/// Without a burst it is what one second brings.
fn bucket(text: &str, number: impl Fn(&str) -> Result<u64, String>) -> Result<TokenBucket, String> {
    let some = |part: &str| {
        NonZeroU64::new(number(part)?).ok_or_else(|| {
            format!("`{text}` lets nothing pass: leave the option out where there is no limit")
        })
    };
    let (rate, burst) = text.split_once('/').unwrap_or((text, text));
    Ok(TokenBucket { per_second: some(rate)?, burst: some(burst)? })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use ec2vmm_vmm_api::config::{RateLimit, TokenBucket};

    use super::Limit;

    fn bucket(per_second: u64, burst: u64) -> Option<TokenBucket> {
        NonZeroU64::new(per_second)
            .zip(NonZeroU64::new(burst))
            .map(|(per_second, burst)| TokenBucket { per_second, burst })
    }

    #[test]
    fn limits() {
        for (text, bandwidth, operations) in [
            ("iops=3000", None, bucket(3000, 3000)),
            ("bps=125M/1G", bucket(125 << 20, 1 << 30), None),
            ("iops=100/5000,bps=1k", bucket(1024, 1024), bucket(100, 5000)),
        ] {
            assert_eq!(text.parse(), Ok(Limit(RateLimit { bandwidth, operations })), "{text}");
        }
        for text in [
            "",
            "3000",
            "iops=",
            "iops=0",
            "iops=1/0",
            "bps=0M",
            "iops=1,iops=2",
            "iops=1.5",
            "iops=1/2/3",
            "ops=1",
        ] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }
}
