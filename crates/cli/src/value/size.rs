//! `512M`, `4G`, `1.5g`: an amount of memory, as docker takes it.

use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("`{text}` is not a size: write 512M, 4G or 1.5G");
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit: u64 = match text.get(number.len()..).unwrap_or_default().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            "t" | "tb" | "tib" => 1 << 40,
            _ => return Err(unknown()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > FRACTION_DIGITS_MAX {
            return Err(unknown());
        }
        let whole: u64 = whole.parse().map_err(|_| format!("`{text}` is too large"))?;
        let fraction: u64 = fraction.parse::<u64>().map_err(|_| unknown())?.saturating_mul(unit)
            / 10u64.pow(u32::try_from(fraction.len()).unwrap_or(0));
        let bytes = whole.checked_mul(unit).and_then(|whole| whole.checked_add(fraction));
        Ok(Self { bytes: bytes.ok_or_else(|| format!("`{text}` is too large"))? })
    }
}

/// More would not change a byte of a size in GiB that matters, and could overflow.
const FRACTION_DIGITS_MAX: usize = 6;

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::Size;

    #[test]
    fn units_are_binary() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("4G", 4 << 30),
            ("4GiB", 4 << 30),
            ("1.5G", 3 << 29),
            ("0.5gb", 1 << 29),
            ("64k", 64 << 10),
            ("2T", 2 << 40),
        ] {
            assert_eq!(text.parse::<Size>(), Ok(Size { bytes }), "{text}");
        }
        for text in [
            "",
            "G",
            "-1G",
            "1,5G",
            "1.G",
            ".5G",
            "1.5.5G",
            "4X",
            "4 G",
            "99999999T",
            "1e3",
            "1.1234567G",
            "²G",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<Size>();
        }

        #[test]
        fn any_number_is_itself(bytes in any::<u64>()) {
            prop_assert_eq!(bytes.to_string().parse::<Size>(), Ok(Size { bytes }));
        }
    }
}
