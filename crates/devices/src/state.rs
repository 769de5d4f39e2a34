//! What devices remember in a snapshot: plain data, a `save` and a `restore` a device.
//!
//! Whoever saves lets the vCPUs stand still. Saved state comes back from a file, so `restore` believes
//! none of it: what makes no sense is a [`BadState`], never a panic. Fields that later versions add have
//! defaults, so that what earlier versions have saved can be restored.

use std::fmt::Write as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Saved state that makes no sense, or not to this device.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct BadState(pub &'static str);

/// Bytes, which people read as hexadecimal digits.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hex(pub Vec<u8>);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * self.0.len());
        for byte in &self.0 {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let byte = |&[high, low]: &[u8; 2]| Some(digit(high)? << 4 | digit(low)?);
        let bytes = pairs.iter().map(byte).collect::<Option<Vec<u8>>>().filter(|_| rest.is_empty());
        bytes.map(Self).ok_or_else(|| D::Error::custom("not pairs of hexadecimal digits"))
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::Hex;

    #[test]
    fn what_is_no_hexadecimal_is_refused() {
        for text in ["\"0\"", "\"0g\"", "\"é\"", "1", "[0]"] {
            serde_json::from_str::<Hex>(text).unwrap_err();
        }
        assert_eq!(serde_json::from_str::<Hex>("\"fF0a\"").unwrap(), Hex(vec![0xff, 0x0a]));
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..99)) {
            let text = serde_json::to_string(&Hex(bytes.clone())).unwrap();
            prop_assert_eq!(text.len(), 2 * bytes.len() + 2);
            prop_assert_eq!(serde_json::from_str::<Hex>(&text).unwrap(), Hex(bytes));
        }
    }
}
