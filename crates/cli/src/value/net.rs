//! `tap=NAME[,mac=MAC]`: a network interface.

use std::str::FromStr;

use super::{mac::Mac, split_commas};

/// A network interface as typed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Net {
    pub(crate) tap: String,
    pub(crate) mac: Option<Mac>,
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut tap, mut mac) = (None, None);
        for part in split_commas(text) {
            match part.split_once('=') {
                Some(("tap", name)) if tap.is_none() && !name.is_empty() => tap = Some(name.to_owned()),
                Some(("mac", address)) if mac.is_none() => mac = Some(address.parse()?),
                _ => return Err(format!("`{part}` is not understood: write tap=NAME or tap=NAME,mac=MAC")),
            }
        }
        Ok(Self { tap: tap.ok_or("it names no tap: write tap=NAME")?, mac })
    }
}

#[cfg(test)]
mod tests {
    use super::Net;
    use crate::value::mac::Mac;

    #[test]
    fn interfaces() {
        assert_eq!("tap=tap0".parse(), Ok(Net { tap: "tap0".into(), mac: None }));
        let mac = Some(Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!("tap=tap0,mac=02:00:00:00:00:01".parse(), Ok(Net { tap: "tap0".into(), mac }));
        for text in ["", "tap0", "tap=", "mac=02:00:00:00:00:01", "tap=a,tap=b", "tap=a,mtu=9", "tap=a,mac=x"]
        {
            assert!(text.parse::<Net>().is_err(), "{text}");
        }
    }
}
