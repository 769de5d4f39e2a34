//! Making key pairs.

use ec2vmm_model::key_pairs::KeyKind;
use rsa::{
    RsaPrivateKey,
    pkcs1::EncodeRsaPrivateKey,
    pkcs8::{EncodePrivateKey, LineEnding},
};
use ssh_key::{
    private::{Ed25519Keypair, PrivateKey},
    public::{KeyData, PublicKey},
    rand_core::OsRng,
};

use super::{Created, Error, PrivateHalf, PublicHalf, comment, fingerprint, line, ppk, rsa_to_openssh};
use crate::key_pairs::PrivateFormat;

/// Makes a key pair. `bits` is for RSA: 2048, which nothing means too, or 4096.
///
/// Takes tens of milliseconds to seconds of processor time for RSA: call it where blocking is allowed.
///
/// # Errors
/// [`Error::Bits`], [`Error::BitsOfEd25519`], [`Error::Failed`].
pub fn create(kind: KeyKind, bits: Option<u16>, format: PrivateFormat, name: &str) -> Result<Created, Error> {
    match (kind, bits) {
        (KeyKind::Rsa, None) => rsa(2048, format, name),
        (KeyKind::Rsa, Some(bits @ (2048 | 4096))) => rsa(bits, format, name),
        (KeyKind::Rsa, Some(bits)) => Err(Error::Bits { bits }),
        (KeyKind::Ed25519, None) => ed25519(format, name),
        (KeyKind::Ed25519, Some(_)) => Err(Error::BitsOfEd25519),
    }
}

fn rsa(bits: u16, format: PrivateFormat, name: &str) -> Result<Created, Error> {
    let key = RsaPrivateKey::new(&mut OsRng, usize::from(bits)).map_err(|_| Error::Failed("no primes"))?;
    let public =
        rsa_to_openssh(&key.to_public_key()).ok_or(Error::Failed("the public half cannot be written"))?;
    let der = key.to_pkcs8_der().map_err(|_| Error::Failed("the private half cannot be written"))?;
    let private = match format {
        PrivateFormat::Pem => key.to_pkcs1_pem(LineEnding::LF).ok(),
        PrivateFormat::Ppk => ppk::rsa(&key, &public, &comment(name)),
    };
    created(KeyKind::Rsa, &public, fingerprint::of_created_rsa(der.as_bytes()), private, name)
}

fn ed25519(format: PrivateFormat, name: &str) -> Result<Created, Error> {
    let key = Ed25519Keypair::random(&mut OsRng);
    let public = PublicKey::from(KeyData::Ed25519(key.public));
    let fingerprint = fingerprint::of_ed25519(&public);
    let private = match format {
        PrivateFormat::Pem => PrivateKey::from(key).to_openssh(ssh_key::LineEnding::LF).ok(),
        PrivateFormat::Ppk => ppk::ed25519(&key, &public, &comment(name)),
    };
    created(KeyKind::Ed25519, &public, fingerprint, private, name)
}

fn created(
    kind: KeyKind,
    public: &PublicKey,
    fingerprint: Option<String>,
    private: Option<zeroize::Zeroizing<String>>,
    name: &str,
) -> Result<Created, Error> {
    let private = private.ok_or(Error::Failed("the private half cannot be written"))?;
    let (Some(fingerprint), Ok(openssh)) = (fingerprint, line(public, name)) else {
        return Err(Error::Failed("the public half cannot be written"));
    };
    Ok(Created { public: PublicHalf { kind, fingerprint, openssh }, private: PrivateHalf(private) })
}
