//! `30s`, `2m`, `1h 30m`: a span of time; a bare number is seconds, as timeout(1) takes it.

use std::{str::FromStr, time::Duration};

/// A span of time, more than none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse().ok().map(Duration::from_secs);
        let span = seconds.or_else(|| humantime::parse_duration(text).ok());
        span.filter(|span| !span.is_zero())
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a time: write 30s, 2m or 1h30m"))
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::{any, proptest};

    use super::Span;

    #[test]
    fn spans() {
        for (text, ms) in
            [("30s", 30_000), ("30", 30_000), ("2m", 120_000), ("1h30m", 5_400_000), ("250ms", 250)]
        {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(ms))), "{text}");
        }
        for text in ["", "0", "0s", "-1s", "s", "1.5", "1y2x", "99999999999999999999s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<Span>();
        }
    }
}
