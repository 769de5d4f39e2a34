//! Spans of time for people, in the two largest units.

/// `45s`, `3m12s`, `2h5m`, `12d4h`.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    let units = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let Some(at) = units.iter().position(|(_, length)| seconds >= *length) else { return "0s".to_owned() };
    let mut rest = seconds;
    let mut text = String::new();
    for (unit, length) in units.iter().skip(at).take(2) {
        let count = rest / length;
        rest %= length;
        if count > 0 {
            text += &format!("{count}{unit}");
        }
    }
    text
}

/// `870 µs`, `12.3 ms`, `4.56 s`: how long a step took.
pub(crate) fn took(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::{span, took};

    #[test]
    fn two_units() {
        let spans = [0, 999, 1_000, 59_999, 60_000, 192_000, 7_500_000, 86_400_000, 90_061_000, u64::MAX];
        assert_eq!(
            spans.map(span),
            ["0s", "0s", "1s", "59s", "1m", "3m12s", "2h5m", "1d", "1d1h", "213503982334d14h"]
        );
    }

    #[test]
    fn steps() {
        assert_eq!(
            [0, 999, 12_340, 999_949, 4_561_000].map(took),
            ["0 µs", "999 µs", "12.3 ms", "999.9 ms", "4.56 s"]
        );
    }
}
