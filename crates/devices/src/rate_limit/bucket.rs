//! One token bucket.

use super::TokenBucket;

/// Counts billionths of a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Bucket {
    size: TokenBucket,
    /// At most the burst. Below zero it owes: since it is only charged while above, by no more than the
    /// largest charge, so that a sum of 64-bit numbers of tokens never leaves 128 bits.
    level: i128,
    /// When the level was true.
    at_ns: u64,
}

impl Bucket {
    pub(super) fn full(size: TokenBucket, now_ns: u64) -> Self {
        Self { size, level: billionths(size.burst.get()), at_ns: now_ns }
    }

    /// The same tokens in a bucket of another size.
    pub(super) fn resized(mut self, size: TokenBucket, now_ns: u64) -> Self {
        self.refill(now_ns);
        if self.size != size {
            let burst = billionths(size.burst.get());
            self.level = self.level.clamp(-burst, burst);
            self.size = size;
        }
        self
    }

    /// How long until something may pass; zero if it may now. Whoever waits, waits for as many tokens as
    /// [`TURNS_PER_SECOND`] gives, as far as the bucket holds them, so that a fast bucket does not wake
    /// its owner for each one.
    pub(super) fn wait_ns(&mut self, now_ns: u64) -> u64 {
        self.refill(now_ns);
        if self.level >= TOKEN {
            return 0;
        }
        let (per_second, burst) = (self.size.per_second.get(), self.size.burst.get());
        let wanted = (per_second / TURNS_PER_SECOND).clamp(1, burst);
        let missing = billionths(wanted).saturating_sub(self.level).unsigned_abs();
        u64::try_from(missing.div_ceil(u128::from(per_second))).unwrap_or(u64::MAX)
    }

    pub(super) fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(billionths(tokens)).max(DEBT_MAX);
    }

    fn refill(&mut self, now_ns: u64) {
        // A clock never goes back; one that does gives nothing.
        let elapsed = now_ns.saturating_sub(self.at_ns);
        self.at_ns = self.at_ns.max(now_ns);
        let missing = billionths(self.size.burst.get()).abs_diff(self.level);
        let gained = u128::from(elapsed) * u128::from(self.size.per_second.get());
        // What is missing fits, see `level`.
        self.level = self.level.saturating_add(i128::try_from(gained.min(missing)).unwrap_or(i128::MAX));
    }

    #[cfg(test)]
    pub(super) fn level(&self) -> i128 {
        self.level
    }
}

fn billionths(tokens: u64) -> i128 {
    i128::from(tokens) * TOKEN
}

const TOKEN: i128 = 1_000_000_000;
/// More than anybody may owe who is charged only while there is a token.
const DEBT_MAX: i128 = -(u64::MAX as i128 * TOKEN);
/// How often a second somebody who waits is woken, about.
const TURNS_PER_SECOND: u64 = 1000;
