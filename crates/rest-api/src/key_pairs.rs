//! Key pairs. The private half is answered once, when it is made, and kept nowhere.

use std::collections::BTreeMap;

use ec2vmm_model::Time;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A key pair to make.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKeyPairRequest {
    /// Its name, unique in the region: up to 255 ASCII characters, no space at either end.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[!-~]([ -~]*[!-~])?$", example = "my-key")]
    pub name: String,
    /// RSA or ED25519.
    #[serde(default)]
    pub kind: KeyKind,
    /// Length of an RSA key: 2048 or 4096. Without it, 2048. Not for ED25519.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 2048, maximum = 4096, multiple_of = 2048)]
    pub bits: Option<u16>,
    /// How the private half is written.
    #[serde(default)]
    pub format: PrivateKeyFormat,
    /// Its tags, by key.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// A public key to import.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportKeyPairRequest {
    /// Its name, unique in the region: up to 255 ASCII characters, no space at either end.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[!-~]([ -~]*[!-~])?$", example = "my-key")]
    pub name: String,
    /// As OpenSSH writes it (`ssh-ed25519 AAAA...`), or SSH public key format (RFC 4716), or the DER of
    /// either in base64.
    #[schema(min_length = 1, max_length = 16384)]
    pub public_key: String,
    /// Its tags, by key.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// The kinds of keys that EC2 has.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// 2048 or 4096 bits where it is made here.
    #[default]
    Rsa,
    /// Edwards curve.
    Ed25519,
}

/// How a private key is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PrivateKeyFormat {
    /// For OpenSSH.
    #[default]
    Pem,
    /// For PuTTY, version 3.
    Ppk,
}

/// A key pair that was made, with the private half that nobody keeps.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct CreatedKeyPair {
    /// The key pair.
    pub key_pair: KeyPair,
    /// The private half. This is the only time that it is seen.
    pub private_key: String,
    /// How it is written.
    pub format: PrivateKeyFormat,
}

/// Key pairs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct KeyPairList {
    /// The key pairs.
    pub key_pairs: Vec<KeyPair>,
}

/// Which key pairs. As on EC2 they come all at once.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, PartialEq, Serialize)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct KeyPairQuery {
    /// Only these ids. May be repeated. One that is not there is an error.
    #[param(style = Form, explode, max_items = 1000, nullable = false)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub id: Vec<String>,
    /// Only these names. May be repeated. One that is not there is an error.
    #[param(style = Form, explode, max_items = 1000, nullable = false)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub name: Vec<String>,
    /// As in [`ListQuery::filter`](crate::ListQuery::filter).
    #[param(style = Form, explode, max_items = 50, nullable = false, example = json!(["key-type=rsa"]))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<String>,
}

/// A key pair, its public half.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct KeyPair {
    /// Its id.
    #[schema(example = "key-0123456789abcdef0")]
    pub key_pair_id: String,
    /// Its name, unique in the region.
    pub name: String,
    /// RSA or ED25519.
    pub kind: KeyKind,
    /// As EC2 computes it for this kind and origin.
    pub fingerprint: String,
    /// As OpenSSH writes it, on one line.
    pub public_key: String,
    /// When it was made or imported.
    #[schema(value_type = String, format = DateTime)]
    pub creation_time: Time,
    /// Its tags, by key.
    pub tags: BTreeMap<String, String>,
}
