//! `8`, `8G`, `1T`: the size of a volume, which EC2 counts in whole GiB.

use std::str::FromStr;

use super::size::Size;

/// GiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Gib(pub(crate) u32);

impl FromStr for Gib {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("`{text}` is not a size of a volume: write whole GiB, such as 8 or 8G");
        let gib = match text.parse::<u32>() {
            Ok(gib) => gib,
            Err(_) => {
                let Size { bytes } = text.parse().map_err(|_| unknown())?;
                let is_whole = bytes.is_multiple_of(1 << 30);
                is_whole.then_some(bytes >> 30).and_then(|gib| u32::try_from(gib).ok()).ok_or_else(unknown)?
            }
        };
        if gib == 0 { Err(unknown()) } else { Ok(Self(gib)) }
    }
}

#[cfg(test)]
mod tests {
    use super::Gib;

    #[test]
    fn sizes() {
        for (text, gib) in [("8", 8), ("8G", 8), ("8GiB", 8), ("1T", 1024), ("1.5T", 1536), ("2048M", 2)] {
            assert_eq!(text.parse(), Ok(Gib(gib)), "{text}");
        }
        for text in ["", "0", "-1", "1.5G", "512M", "x", "99999999999", "99999999999T"] {
            assert!(text.parse::<Gib>().is_err(), "{text}");
        }
    }
}
