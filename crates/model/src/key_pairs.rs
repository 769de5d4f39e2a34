//! Key pairs: the public halves, by name. The private half is never here.

use serde::{Deserialize, Serialize};

use crate::{ids::KeyPairId, tags::Tags, time::Time};

/// A key pair, as the store keeps it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct KeyPair {
    /// Its id.
    pub id: KeyPairId,
    /// Its name, unique in the region: up to 255 ASCII characters.
    pub name: String,
    /// RSA or ED25519.
    pub kind: KeyKind,
    /// As EC2 computes it for this kind and origin.
    pub fingerprint: String,
    /// As OpenSSH writes it, on one line.
    pub public_key: String,
    /// When it was created or imported.
    pub created: Time,
    /// Tags.
    pub tags: Tags,
}

/// The kinds of keys that EC2 has.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// 2048 bits where EC2 makes one; 1024, 2048, 4096 where it is imported.
    #[default]
    Rsa,
    /// Edwards curve.
    Ed25519,
}

/// What is no name of a key pair: `InvalidParameterValue`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a key pair's name is 1 to {NAME_BYTES_MAX} printable ASCII characters, without blanks at its ends")]
pub struct InvalidName;

/// Whether a key pair can be called so: EC2 API Reference, `CreateKeyPair`.
///
/// # Errors
/// [`InvalidName`].
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        && name.trim() == name;
    fits.then_some(()).ok_or(InvalidName)
}

/// Longest name.
pub const NAME_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::{NAME_BYTES_MAX, check_name};

    #[test]
    fn names() {
        let long = "k".repeat(NAME_BYTES_MAX);
        for name in ["k", "my-key", "a b/c:d@e", "..", &long] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", " ", " k", "k ", "schl\u{fc}ssel", "a\nb", "a\0", &format!("{long}k")] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
