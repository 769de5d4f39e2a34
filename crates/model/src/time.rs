//! Points in time, as records keep them: milliseconds since 1970, UTC. On the wire, RFC 3339.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A point in time, to the millisecond. Reading a clock is the caller's business.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Time(Timestamp);

impl Time {
    /// From milliseconds since 1970; times beyond what a calendar can say become its ends.
    pub fn from_unix_ms(ms: i64) -> Self {
        Self(Timestamp::from_millisecond(ms).unwrap_or(if ms < 0 { Timestamp::MIN } else { Timestamp::MAX }))
    }

    /// Milliseconds since 1970.
    pub fn unix_ms(self) -> i64 {
        self.0.as_millisecond()
    }

    /// Milliseconds from `earlier` to here; none where a clock went back.
    pub fn ms_since(self, earlier: Self) -> u64 {
        u64::try_from(self.unix_ms().saturating_sub(earlier.unix_ms())).unwrap_or(0)
    }

    /// As EC2 writes it in words: `2026-11-22 10:33:13 GMT`.
    pub fn gmt(self) -> impl fmt::Display {
        self.0.strftime("%Y-%m-%d %H:%M:%S GMT")
    }

    /// This much later.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self::from_unix_ms(self.unix_ms().saturating_add_unsigned(ms))
    }
}

/// As EC2 writes it: `2026-11-22T10:33:13.000Z`.
impl fmt::Display for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.3}", self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let time = Timestamp::deserialize(deserializer)?;
        Ok(Self::from_unix_ms(time.as_millisecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::Time;

    #[test]
    fn as_ec2_writes_it() {
        let time = Time::from_unix_ms(1_795_343_593_000);
        assert_eq!(time.to_string(), "2026-11-22T10:33:13.000Z");
        let json = serde_json::to_string(&time).unwrap();
        assert_eq!(serde_json::from_str::<Time>(&json).unwrap(), time);
    }

    #[test]
    fn a_clock_that_goes_back() {
        let [early, late] = [1_000, 2_000].map(Time::from_unix_ms);
        assert_eq!((late.ms_since(early), early.ms_since(late)), (1_000, 0));
        assert!(Time::from_unix_ms(i64::MAX).plus_ms(1) >= late);
    }
}
