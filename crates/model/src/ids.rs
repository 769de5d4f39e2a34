//! Resource ids: a prefix and seventeen hexadecimal digits, as EC2 has given them since 2016.
//!
//! Invariant: an id is well-formed. Whether there is such a resource is for the store to say; the two
//! are different errors (`InvalidInstanceID.Malformed`, `InvalidInstanceID.NotFound`).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What is no id.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("\"{given}\" is not an id of {what} ({prefix}-, then 8 or 17 hexadecimal digits)")]
pub struct Malformed {
    /// What was given, cut where it is long.
    pub given: String,
    /// What it should name, such as `an instance`.
    pub what: &'static str,
    /// How such ids begin.
    pub prefix: &'static str,
}

macro_rules! ids {
    ($($(#[$doc:meta])+ $name:ident = $prefix:literal, $what:literal;)+) => {$(
        $(#[$doc])+
        #[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// How such ids begin, without the hyphen.
            pub const PREFIX: &'static str = $prefix;

            /// A new id out of random bits, of which 68 are used.
            pub fn from_random(bits: u128) -> Self {
                Self(format!("{}-{:017x}", $prefix, bits & ((1 << 68) - 1)))
            }

            /// The id.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Malformed;

            fn from_str(given: &str) -> Result<Self, Malformed> {
                match is_id(given, $prefix) {
                    true => Ok(Self(given.to_owned())),
                    false => Err(Malformed {
                        given: given.chars().take(64).collect(),
                        what: $what,
                        prefix: $prefix,
                    }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = Malformed;

            fn try_from(given: String) -> Result<Self, Malformed> {
                given.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    )+};
}

ids! {
    /// An instance.
    InstanceId = "i", "an instance";
    /// Instances that were launched by one request.
    ReservationId = "r", "a reservation";
    /// An image.
    ImageId = "ami", "an image";
    /// A volume.
    VolumeId = "vol", "a volume";
    /// A key pair.
    KeyPairId = "key", "a key pair";
    /// A network interface.
    InterfaceId = "eni", "a network interface";
    /// A network.
    VpcId = "vpc", "a VPC";
    /// A range of addresses in a network.
    SubnetId = "subnet", "a subnet";
}

/// Ids from before 2016 have eight digits, and still stand in people's scripts.
fn is_id(given: &str, prefix: &str) -> bool {
    let digits = given.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
    digits.is_some_and(|digits| {
        matches!(digits.len(), 8 | 17) && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::{ImageId, InstanceId};

    #[test]
    fn what_is_no_id() {
        for given in
            ["", "i", "i-", "i-123", "ami-12345678", "i-1234567G", "i-0123456789abcdef01", "I-12345678"]
        {
            assert!(given.parse::<InstanceId>().is_err(), "{given}");
        }
        assert!("i-1234abcd".parse::<InstanceId>().is_ok());
        expect![[r#""bogus" is not an id of an image (ami-, then 8 or 17 hexadecimal digits)"#]]
            .assert_eq(&"bogus".parse::<ImageId>().unwrap_err().to_string());
    }

    proptest! {
        #[test]
        fn every_new_id_is_one(bits in any::<u128>()) {
            let id = InstanceId::from_random(bits);
            prop_assert_eq!(id.as_str().parse::<InstanceId>().unwrap(), id.clone());
            prop_assert!(id.as_str().len() == 19);
        }
    }
}
