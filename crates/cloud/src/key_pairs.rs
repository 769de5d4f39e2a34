//! Key pairs.

use std::sync::Arc;

use ec2vmm_model::{
    key_pairs::{KeyKind, KeyPair},
    tags::Tags,
};

use crate::filters::Filter;

/// A key pair to be made.
#[derive(Clone, Debug)]
pub struct CreateKeyPair {
    /// Its name, unique: up to 255 ASCII characters.
    pub name: String,
    /// RSA or ED25519.
    pub kind: KeyKind,
    /// Length of an RSA key: 2048 or 4096; nothing for 2048. With ED25519, an error.
    pub bits: Option<u16>,
    /// How the private half is written.
    pub format: PrivateFormat,
    /// Tags.
    pub tags: Tags,
}

/// How a private half is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PrivateFormat {
    /// `.pem`, for OpenSSH.
    #[default]
    Pem,
    /// `.ppk` version 3, for PuTTY.
    Ppk,
}

/// A key pair that was made: the only time that the private half is shown.
pub struct CreatedKeyPair {
    /// The record.
    pub key_pair: Arc<KeyPair>,
    /// The private half. It is not stored.
    pub private_key: String,
}

/// A key pair to be imported.
#[derive(Clone, Debug)]
pub struct ImportKeyPair {
    /// Its name, unique.
    pub name: String,
    /// The public half, as OpenSSH writes it, or PEM, or base64 of DER.
    pub public_key: String,
    /// Tags.
    pub tags: Tags,
}

/// Which key pairs.
#[derive(Clone, Debug, Default)]
pub struct DescribeKeyPairs {
    /// Of these names, all of which must be there.
    pub names: Vec<String>,
    /// Of these ids, all of which must be there.
    pub ids: Vec<String>,
    /// That meet these.
    pub filters: Vec<Filter>,
}

impl crate::Cloud {
    /// `CreateKeyPair`.
    pub async fn create_key_pair(&self, what: CreateKeyPair) -> Result<CreatedKeyPair, crate::Error> { todo!() }
    /// `ImportKeyPair`.
    pub async fn import_key_pair(&self, what: ImportKeyPair) -> Result<Arc<KeyPair>, crate::Error> { todo!() }
    /// `DescribeKeyPairs`: not in pages.
    pub async fn describe_key_pairs(&self, what: &DescribeKeyPairs) -> Result<Vec<Arc<KeyPair>>, crate::Error> { todo!() }
    /// `DeleteKeyPair`, by name or id: one that is not there is no error, and gives nothing.
    pub async fn delete_key_pair(&self, name_or_id: &str) -> Result<Option<Arc<KeyPair>>, crate::Error> { todo!() }
}
