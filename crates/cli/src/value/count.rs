//! `3`, `1:10`: how many instances, exactly or between two counts.

use std::str::FromStr;

/// At least and at most so many.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Count {
    pub(crate) min: u32,
    pub(crate) max: u32,
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            part.parse()
                .map_err(|_| format!("`{part}` is not a count: write 3, or 1:10 for between 1 and 10"))
        };
        let (min, max) = text.split_once(':').unwrap_or((text, text));
        let count = Self { min: number(min)?, max: number(max)? };
        match count.min >= 1 && count.min <= count.max {
            true => Ok(count),
            false => Err(format!("`{text}` is not a count: at least 1, and not fewer at most than at least")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn counts() {
        for (text, min, max) in [("1", 1, 1), ("20", 20, 20), ("1:10", 1, 10), ("5:5", 5, 5)] {
            assert_eq!(text.parse(), Ok(Count { min, max }), "{text}");
        }
        for text in ["", "0", "-1", "x", "0:3", "3:1", "1:", ":1", "1:2:3", "99999999999"] {
            assert!(text.parse::<Count>().is_err(), "{text}");
        }
    }
}
