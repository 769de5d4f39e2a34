//! The material of key pairs: making them, reading what people import, telling them apart by fingerprint.
//!
//! Invariant: a private half is in memory only, is wiped when it is dropped, is in no error and no debug
//! output, and is never stored: who makes a key pair gets it once. A public half that leaves here is one
//! line, safe to stand in `authorized_keys`.

mod create;
mod fingerprint;
mod import;
mod ppk;

use std::fmt;

pub use create::create;
use ec2vmm_model::key_pairs::KeyKind;
pub use import::{Fault, import};
use rsa::traits::PublicKeyParts;
use zeroize::Zeroizing;

/// The public half of a key pair, and what is said of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicHalf {
    /// RSA or ED25519.
    pub kind: KeyKind,
    /// As EC2 computes it for this kind and origin.
    pub fingerprint: String,
    /// As OpenSSH writes it, on one line, with the key pair's name for a comment.
    pub openssh: String,
}

/// A key pair that was made.
#[derive(Debug)]
pub struct Created {
    /// The half to keep.
    pub public: PublicHalf,
    /// The half to hand out.
    pub private: PrivateHalf,
}

/// A private half, as text for a `.pem` or `.ppk` file. Wiped when it is dropped.
pub struct PrivateHalf(Zeroizing<String>);

impl PrivateHalf {
    /// The text. Copies of it are for the caller to wipe.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PrivateHalf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PrivateHalf(..)")
    }
}

/// Why there is no key pair. What was given is never in it: it may be a private key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was given for a public key is none, or none that EC2 takes.
    #[error("Key is not in valid OpenSSH public key format")]
    Format(#[from] Fault),
    /// RSA keys are not made in that length.
    #[error("RSA keys are made with 2048 or 4096 bits, not with {bits}")]
    Bits {
        /// The length that was asked for.
        bits: u16,
    },
    /// ED25519 keys have one length.
    #[error("the length of an ED25519 key cannot be chosen")]
    BitsOfEd25519,
    /// The key cannot be made or written. Neither happens with keys of the lengths above.
    #[error("the key pair cannot be made: {0}")]
    Failed(&'static str),
}

impl Error {
    /// EC2's code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Format(_) => "InvalidKey.Format",
            Self::Bits { .. } => "InvalidParameterValue",
            Self::BitsOfEd25519 => "InvalidParameterCombination",
            Self::Failed(_) => "InternalError",
        }
    }

    /// What people can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Format(fault) => Some(fault.hint()),
            Self::Bits { .. } => Some("say 2048 or 4096, or nothing".to_owned()),
            Self::BitsOfEd25519 => Some("leave the length out".to_owned()),
            Self::Failed(_) => None,
        }
    }
}

fn rsa_to_openssh(key: &rsa::RsaPublicKey) -> Option<ssh_key::PublicKey> {
    let number = |number: &rsa::BigUint| ssh_key::Mpint::from_positive_bytes(&number.to_bytes_be()).ok();
    let key = ssh_key::public::RsaPublicKey { e: number(key.e())?, n: number(key.n())? };
    Some(ssh_key::PublicKey::from(ssh_key::public::KeyData::Rsa(key)))
}

/// A line for `authorized_keys`. The name is people's: of it, only what cannot begin another line.
fn line(key: &ssh_key::PublicKey, name: &str) -> Result<String, ssh_key::Error> {
    let mut key = ssh_key::PublicKey::from(key.key_data().clone());
    key.set_comment(comment(name));
    key.to_openssh()
}

fn comment(name: &str) -> String {
    let name: String = name.chars().filter(|character| !character.is_control()).collect();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests;
