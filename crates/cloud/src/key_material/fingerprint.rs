//! Fingerprints, as EC2 computes them: differently for each kind and origin of a key.
//!
//! Sources: EC2 user guide, "Verify the fingerprint of your key pair", which has the same by `openssl`.
//! The API reference names RFC 4716 for imported RSA keys, but what EC2 returns is the guide's.

use std::fmt::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use md5::Md5;
use rsa::{RsaPublicKey, pkcs8::EncodePublicKey};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ssh_key::PublicKey;

/// Of an RSA key that was made here: SHA-1 of the private key (PKCS#8, DER), hexadecimal with colons.
pub(super) fn of_created_rsa(pkcs8_der: &[u8]) -> Option<String> {
    Some(hex(&Sha1::digest(pkcs8_der)))
}

/// Of an RSA key that was imported: MD5 of the public key (SubjectPublicKeyInfo, DER), hexadecimal with
/// colons.
pub(super) fn of_imported_rsa(key: &RsaPublicKey) -> Option<String> {
    Some(hex(&Md5::digest(key.to_public_key_der().ok()?)))
}

/// Of an ED25519 key, whatever its origin: SHA-256 of the public key (RFC 4253 section 6.6), base64 with
/// padding. OpenSSH shows the same without padding, behind `SHA256:`.
pub(super) fn of_ed25519(key: &PublicKey) -> Option<String> {
    Some(STANDARD.encode(Sha256::digest(key.to_bytes().ok()?)))
}

fn hex(digest: &[u8]) -> String {
    let mut text = String::with_capacity(digest.len() * 3);
    for byte in digest {
        let colon = if text.is_empty() { "" } else { ":" };
        // Writing to a string does not fail.
        let _ = write!(text, "{colon}{byte:02x}");
    }
    text
}
