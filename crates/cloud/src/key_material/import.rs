//! Reading the public keys that people bring: an OpenSSH line, RFC 4716, or base64 of DER.
//!
//! What is read is written anew: nothing of the text but the key itself goes on.

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use ec2vmm_model::key_pairs::KeyKind;
use rsa::{
    BigUint, RsaPublicKey,
    pkcs1::DecodeRsaPublicKey,
    pkcs8::{DecodePublicKey, ObjectIdentifier, spki::SubjectPublicKeyInfoRef},
};
use ssh_key::{
    Mpint, PublicKey,
    public::{Ed25519PublicKey, KeyData},
};

use super::{Error, PublicHalf, fingerprint, line};

/// What is wrong with a public key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// It is longer than any key.
    #[error("it has more than {TEXT_BYTES_MAX} bytes")]
    TooLong,
    /// It is a private key.
    #[error("it is a private key")]
    Private,
    /// It is in none of the three forms.
    #[error("it is no public key")]
    NoKey,
    /// It is a key of another kind.
    #[error("it is neither an RSA nor an ED25519 key")]
    Kind,
    /// It is an RSA key of another length.
    #[error("it is an RSA key of {0} bits")]
    RsaBits(usize),
    /// Its numbers are no key.
    #[error("its numbers are no key")]
    Numbers,
}

impl Fault {
    pub(super) fn hint(self) -> String {
        match self {
            Self::Private => "this is a private key: keep it, and give the file that ends in .pub".to_owned(),
            Self::RsaBits(_) => format!("{self}; RSA keys have 1024, 2048 or 4096 bits"),
            Self::Kind => format!("{self}; `ssh-keygen -t ed25519` makes one"),
            Self::TooLong | Self::NoKey | Self::Numbers => {
                format!("{self}; give what `ssh-keygen -y -f KEY` prints, all on one line")
            }
        }
    }
}

/// Reads a public key.
///
/// # Errors
/// [`Error::Format`].
pub fn import(text: &str, name: &str) -> Result<PublicHalf, Error> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Fault::TooLong.into());
    }
    let key = read(text.trim())?;
    let (kind, fingerprint) = match key.key_data() {
        KeyData::Rsa(rsa) => (KeyKind::Rsa, fingerprint::of_imported_rsa(&checked_rsa(rsa)?)),
        KeyData::Ed25519(ed25519) => {
            checked_ed25519(ed25519)?;
            (KeyKind::Ed25519, fingerprint::of_ed25519(&key))
        }
        _ => return Err(Fault::Kind.into()),
    };
    let (Some(fingerprint), Ok(openssh)) = (fingerprint, line(&key, name)) else {
        return Err(Fault::Numbers.into());
    };
    Ok(PublicHalf { kind, fingerprint, openssh })
}

fn read(text: &str) -> Result<PublicKey, Fault> {
    if text.contains("PRIVATE KEY") || text.starts_with("PuTTY-User-Key-File") {
        return Err(Fault::Private);
    }
    if let Some(text) = text.strip_prefix("---- BEGIN SSH2 PUBLIC KEY ----") {
        return of_blob(&base64(ssh2_body(text)?)?);
    }
    match text.split_once([' ', '\t']) {
        Some((algorithm, rest)) if is_algorithm(algorithm) => of_line(algorithm, rest),
        _ => of_der(&base64(text)?),
    }
}

/// `ssh-rsa AAAA… comment`. One line: two would be two keys to OpenSSH.
fn of_line(algorithm: &str, rest: &str) -> Result<PublicKey, Fault> {
    if rest.contains(['\n', '\r', '\0']) {
        return Err(Fault::NoKey);
    }
    let blob = rest.split_whitespace().next().ok_or(Fault::NoKey)?;
    if !matches!(algorithm, "ssh-rsa" | "ssh-ed25519") {
        return Err(Fault::Kind);
    }
    let key = of_blob(&base64(blob)?)?;
    match key.algorithm().as_str() == algorithm {
        true => Ok(key),
        false => Err(Fault::NoKey),
    }
}

fn is_algorithm(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-"].iter().any(|prefix| word.starts_with(prefix))
}

/// RFC 4253 section 6.6.
fn of_blob(blob: &[u8]) -> Result<PublicKey, Fault> {
    PublicKey::from_bytes(blob).map_err(|error| match error {
        ssh_key::Error::AlgorithmUnknown | ssh_key::Error::AlgorithmUnsupported { .. } => Fault::Kind,
        _ => Fault::NoKey,
    })
}

/// RFC 4716 section 3: headers, of which a backslash at the end continues a line, then the key.
fn ssh2_body(text: &str) -> Result<&str, Fault> {
    let mut rest = text.trim_start();
    let (body, after) = rest.split_once("---- END SSH2 PUBLIC KEY ----").ok_or(Fault::NoKey)?;
    if !after.trim().is_empty() {
        return Err(Fault::NoKey);
    }
    rest = body;
    let mut continued = false;
    while let Some((first, more)) = rest.split_once('\n') {
        if !continued && !first.contains(':') {
            break;
        }
        continued = first.trim_end_matches('\r').ends_with('\\');
        rest = more;
    }
    Ok(rest)
}

/// SubjectPublicKeyInfo (RFC 5280 section 4.1), or for RSA PKCS#1 (RFC 8017 appendix A.1.1).
fn of_der(der: &[u8]) -> Result<PublicKey, Fault> {
    if let Ok(key) = RsaPublicKey::from_pkcs1_der(der) {
        return of_rsa(&key);
    }
    let info = SubjectPublicKeyInfoRef::try_from(der).map_err(|_| Fault::NoKey)?;
    match info.algorithm.oid {
        RSA => of_rsa(&RsaPublicKey::from_public_key_der(der).map_err(|_| Fault::Numbers)?),
        ED25519 => {
            let bytes = info.subject_public_key.as_bytes().ok_or(Fault::NoKey)?;
            let bytes = bytes.try_into().map_err(|_| Fault::NoKey)?;
            Ok(PublicKey::from(KeyData::Ed25519(Ed25519PublicKey(bytes))))
        }
        _ => Err(Fault::Kind),
    }
}

fn of_rsa(key: &RsaPublicKey) -> Result<PublicKey, Fault> {
    super::rsa_to_openssh(key).ok_or(Fault::Numbers)
}

fn checked_rsa(key: &ssh_key::public::RsaPublicKey) -> Result<RsaPublicKey, Fault> {
    let number =
        |number: &Mpint| number.as_positive_bytes().map(BigUint::from_bytes_be).ok_or(Fault::Numbers);
    let (n, e) = (number(&key.n)?, number(&key.e)?);
    // Before anything is computed with it.
    if !matches!(n.bits(), 1024 | 2048 | 4096) {
        return Err(Fault::RsaBits(n.bits()));
    }
    match n.to_bytes_le().first().is_some_and(|last| last % 2 == 1) {
        true => RsaPublicKey::new(n, e).map_err(|_| Fault::Numbers),
        false => Err(Fault::Numbers),
    }
}

/// Not every 32 bytes are a point on the curve.
fn checked_ed25519(key: &Ed25519PublicKey) -> Result<(), Fault> {
    ed25519_dalek::VerifyingKey::from_bytes(&key.0).map(|_| ()).map_err(|_| Fault::Numbers)
}

/// Base64 with or without padding; lines may be broken anywhere.
fn base64(text: &str) -> Result<Vec<u8>, Fault> {
    let text: String = text.chars().filter(|character| !character.is_ascii_whitespace()).collect();
    BASE64.decode(text).map_err(|_| Fault::NoKey)
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// RFC 8017 appendix C, `rsaEncryption`.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// RFC 8410 section 3, `id-Ed25519`.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// The longest text that is looked at, bytes. A 4096-bit key has about 750, and its comment what is left.
const TEXT_BYTES_MAX: usize = 8192;
