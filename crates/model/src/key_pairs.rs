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
