//! The time that has passed between a snapshot and its restore, for the clocks of the guest.

/// Nanoseconds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Elapsed(u64);

impl Elapsed {
    /// From one reading of the host's wall clock to a later one, both in nanoseconds since 1970. A clock
    /// that was set back meanwhile, or was on another host, makes it nothing; and it is never more than
    /// 30 years, whatever a file says.
    pub fn between(then_ns: u64, now_ns: i128) -> Self {
        let ns = (now_ns - i128::from(then_ns)).clamp(0, i128::from(ELAPSED_NS_MAX));
        Self(u64::try_from(ns).unwrap_or(0))
    }

    /// A clock that counts nanoseconds.
    pub fn advance_ns(self, clock: u64) -> u64 {
        clock.wrapping_add(self.0)
    }

    /// A counter that counts `khz` thousand times a second.
    pub fn advance_counter(self, counter: u64, khz: u32) -> u64 {
        let ticks = u128::from(self.0) * u128::from(khz) / 1_000_000;
        // Of 30 years at 2^32 kHz the low 64 bits are all that a counter shows.
        #[allow(clippy::cast_possible_truncation, reason = "modulo 2^64, as the counter itself")]
        counter.wrapping_add(ticks as u64)
    }
}

/// The longest time that clocks are advanced by.
const YEARS_MAX: u64 = 30;
const ELAPSED_NS_MAX: u64 = YEARS_MAX * 366 * 86_400 * 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::{ELAPSED_NS_MAX, Elapsed};

    #[test]
    fn clocks_advance_by_what_has_passed() {
        let second = Elapsed::between(5_000_000_000, 6_000_000_000);
        assert_eq!(second.advance_ns(7), 1_000_000_007);
        assert_eq!(second.advance_counter(1, 2_500_000), 2_500_000_001);
        assert_eq!(Elapsed::between(6, 5), Elapsed(0), "set back");
        assert_eq!(Elapsed::between(0, i128::MAX), Elapsed(ELAPSED_NS_MAX));
        assert_eq!(Elapsed(1).advance_ns(u64::MAX), 0);
    }
}
