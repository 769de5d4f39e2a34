//! PuTTY's format for private keys, version 3, not encrypted (PuTTY manual, appendix C).

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use rsa::{BigUint, RsaPrivateKey, traits::PrivateKeyParts};
use sha2::Sha256;
use ssh_key::{PublicKey, private::Ed25519Keypair};
use zeroize::Zeroizing;

/// An RSA key: the private exponent, the primes, and the inverse of the second modulo the first.
pub(super) fn rsa(key: &RsaPrivateKey, public: &PublicKey, comment: &str) -> Option<Zeroizing<String>> {
    let [p, q] = key.primes() else { return None };
    let inverse = Zeroizing::new(key.crt_coefficient()?);
    let mut private = Zeroizing::new(Vec::with_capacity(PRIVATE_BYTES_MAX));
    for number in [key.d(), p, q, &inverse] {
        put_mpint(&mut private, number)?;
    }
    file("ssh-rsa", public, &private, comment)
}

/// An ED25519 key: its seed.
pub(super) fn ed25519(key: &Ed25519Keypair, public: &PublicKey, comment: &str) -> Option<Zeroizing<String>> {
    let mut private = Zeroizing::new(Vec::with_capacity(PRIVATE_BYTES_MAX));
    put_string(&mut private, &*Zeroizing::new(key.private.to_bytes()))?;
    file("ssh-ed25519", public, &private, comment)
}

fn file(algorithm: &str, public: &PublicKey, private: &[u8], comment: &str) -> Option<Zeroizing<String>> {
    let public = public.to_bytes().ok()?;
    let mac = mac(algorithm, comment, &public, private)?;
    // Large enough that it is never moved, which would leave a copy behind.
    let mut text =
        Zeroizing::new(String::with_capacity(2 * (public.len() + private.len()) + 1024 + comment.len()));
    text.push_str(&format!("PuTTY-User-Key-File-3: {algorithm}\nEncryption: none\nComment: {comment}\n"));
    put_lines(&mut text, "Public-Lines", &public)?;
    put_lines(&mut text, "Private-Lines", private)?;
    text.push_str("Private-MAC: ");
    for byte in mac {
        text.push_str(&format!("{byte:02x}"));
    }
    text.push('\n');
    Some(text)
}

/// Over everything that is in the file. The key of the MAC is empty where nothing is encrypted.
fn mac(algorithm: &str, comment: &str, public: &[u8], private: &[u8]) -> Option<[u8; 32]> {
    let mut content = Zeroizing::new(Vec::with_capacity(2 * PRIVATE_BYTES_MAX + comment.len()));
    for part in [algorithm.as_bytes(), b"none", comment.as_bytes(), public, private] {
        put_string(&mut content, part)?;
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(&[]).ok()?;
    mac.update(&content);
    Some(mac.finalize().into_bytes().into())
}

fn put_lines(text: &mut String, name: &str, bytes: &[u8]) -> Option<()> {
    let base64 = Zeroizing::new(STANDARD.encode(bytes));
    text.push_str(&format!("{name}: {}\n", base64.len().div_ceil(COLUMNS)));
    for line in base64.as_bytes().chunks(COLUMNS) {
        text.push_str(std::str::from_utf8(line).ok()?);
        text.push('\n');
    }
    Some(())
}

/// RFC 4251 section 5: a length, and as many bytes.
fn put_string(to: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    to.extend(u32::try_from(bytes.len()).ok()?.to_be_bytes());
    to.extend(bytes);
    Some(())
}

/// RFC 4251 section 5: a number in two's complement, so that a first bit that is set has a zero before it.
fn put_mpint(to: &mut Vec<u8>, number: &BigUint) -> Option<()> {
    let digits = Zeroizing::new(number.to_bytes_be());
    let zero = digits.first().is_some_and(|first| first & 0x80 != 0);
    to.extend(u32::try_from(digits.len() + usize::from(zero)).ok()?.to_be_bytes());
    to.extend(zero.then_some(0));
    to.extend(&*digits);
    Some(())
}

const COLUMNS: usize = 64;

/// What the private half of the longest key has: 512 bytes for the exponent and 256 for each of the others.
const PRIVATE_BYTES_MAX: usize = 2048;
