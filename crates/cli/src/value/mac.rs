//! `02:00:00:00:00:01`: an Ethernet address of one interface.

use std::str::FromStr;

/// The address of one interface: not of a group, not all zeroes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("`{text}` is not an Ethernet address: write 02:00:00:00:00:01");
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let address: [u8; 6] = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(unknown)?;
        match address {
            [first, ..] if first & GROUP_BIT != 0 => Err(format!("`{text}` is the address of a group")),
            [0, 0, 0, 0, 0, 0] => Err(format!("`{text}` is nobody's address")),
            address => Ok(Self(address)),
        }
    }
}

fn byte(digits: &str) -> Option<u8> {
    let sound = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    sound.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// IEEE 802: the least bit of the first byte.
const GROUP_BIT: u8 = 1;

#[cfg(test)]
mod tests {
    use super::Mac;

    #[test]
    fn addresses() {
        assert_eq!("02:0a:00:FF:00:01".parse(), Ok(Mac([2, 10, 0, 255, 0, 1])));
        for text in
            ["", "02", "01:00:00:00:00:01", "00:00:00:00:00:00", "02:00:00:00:00:01:02", "+2:00:00:00:00:01"]
        {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
