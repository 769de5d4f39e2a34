use std::{os::unix::fs::PermissionsExt, path::Path, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use ec2vmm_model::key_pairs::KeyKind;
use expect_test::{Expect, expect};
use proptest::{
    collection::vec,
    prelude::{any, prop_assert, prop_assert_eq, proptest},
};
use rsa::{
    RsaPrivateKey,
    pkcs1::DecodeRsaPrivateKey,
    pkcs8::{EncodePrivateKey, EncodePublicKey},
};

use super::{Error, create, fingerprint, import, ppk};
use crate::key_pairs::PrivateFormat;

const RSA_PEM: &str = include_str!("vectors/rsa.pem");
const RSA_PPK: &str = include_str!("vectors/rsa.ppk");
const RSA_PUB: &str = include_str!("vectors/rsa.pub");
const ED25519_PEM: &str = include_str!("vectors/ed25519.pem");
const ED25519_PPK: &str = include_str!("vectors/ed25519.ppk");
const ED25519_PUB: &str = include_str!("vectors/ed25519.pub");

const RSA_FINGERPRINT: &str = "9e:07:a7:1c:d9:87:38:2e:ef:2f:00:b6:16:95:03:2a";
const ED25519_FINGERPRINT: &str = "XF40YfKb7w6YfdUt8lR5dciWQ4dtEKa7PqH7tRhEea4=";

fn rsa() -> RsaPrivateKey {
    RsaPrivateKey::from_pkcs1_pem(RSA_PEM).unwrap()
}

/// The second word of a line: the key itself.
fn blob(line: &str) -> &str {
    line.split(' ').nth(1).unwrap()
}

fn public(line: &str) -> ssh_key::PublicKey {
    ssh_key::PublicKey::from_openssh(line).unwrap()
}

#[test]
fn fingerprints_are_those_of_openssl() {
    let der = rsa().to_pkcs8_der().unwrap();
    let created = fingerprint::of_created_rsa(der.as_bytes()).unwrap();
    assert_eq!(created, "f8:22:b0:5b:09:d7:08:b0:79:50:f5:80:c8:e2:b1:8c:b6:96:f4:5b");
    assert_eq!(import(RSA_PUB, "name").unwrap().fingerprint, RSA_FINGERPRINT);
    assert_eq!(import(ED25519_PUB, "name").unwrap().fingerprint, ED25519_FINGERPRINT);
}

#[test]
fn files_for_putty_are_those_of_puttygen() {
    assert_eq!(*ppk::rsa(&rsa(), &public(RSA_PUB), "my-key").unwrap(), RSA_PPK);
    let key = ssh_key::PrivateKey::from_openssh(ED25519_PEM).unwrap();
    let ssh_key::private::KeypairData::Ed25519(key) = key.key_data() else { panic!("another kind") };
    assert_eq!(*ppk::ed25519(key, &public(ED25519_PUB), "my-key").unwrap(), ED25519_PPK);
}

#[test]
fn every_form_of_a_public_key() {
    let der = rsa().to_public_key().to_public_key_der().unwrap();
    let pkcs1 = rsa::pkcs1::EncodeRsaPublicKey::to_pkcs1_der(&rsa().to_public_key()).unwrap();
    let ssh2 = format!(
        "---- BEGIN SSH2 PUBLIC KEY ----\r\nSubject: me\r\nComment: \"1024-bit RSA, \\\r\nconverted\"\r\n\
         x-command: /home/me/bin/lock-in-guest.sh\r\n{}\r\n{}\r\n---- END SSH2 PUBLIC KEY ----\r\n",
        &blob(RSA_PUB)[..70],
        &blob(RSA_PUB)[70..]
    );
    let forms = [
        RSA_PUB.to_owned(),
        format!("  ssh-rsa\t{}\r\n", blob(RSA_PUB)),
        STANDARD.encode(der.as_bytes()),
        STANDARD.encode(pkcs1.as_bytes()),
        ssh2.replace('\r', ""),
        ssh2,
    ];
    for form in forms {
        let half = import(&form, "my key").unwrap();
        assert_eq!(half.kind, KeyKind::Rsa);
        assert_eq!(half.openssh, format!("ssh-rsa {} my key", blob(RSA_PUB)));
        assert_eq!(half.fingerprint, RSA_FINGERPRINT);
    }
    let spki = [
        &[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0],
        &STANDARD.decode(blob(ED25519_PUB)).unwrap()[19..],
    ];
    let ssh2 =
        format!("---- BEGIN SSH2 PUBLIC KEY ----\n{}\n---- END SSH2 PUBLIC KEY ----", blob(ED25519_PUB));
    for form in [ED25519_PUB.to_owned(), STANDARD.encode(spki.concat()), ssh2] {
        let half = import(&form, "my key").unwrap();
        assert_eq!(half.kind, KeyKind::Ed25519);
        assert_eq!(half.openssh, format!("ssh-ed25519 {} my key", blob(ED25519_PUB)));
    }
}

fn check_refused(text: &str, hint: &Expect) {
    let error = import(text, "name").unwrap_err();
    assert_eq!(error.code(), "InvalidKey.Format");
    assert_eq!(error.to_string(), "Key is not in valid OpenSSH public key format");
    hint.assert_eq(&error.hint().unwrap());
}

#[test]
fn what_is_no_public_key() {
    let give = expect!["it is no public key; give what `ssh-keygen -y -f KEY` prints, all on one line"];
    let two = format!("{}{}", RSA_PUB, ED25519_PUB);
    let limited = format!("command=\"/bin/true\" {RSA_PUB}");
    let other = RSA_PUB.replace("ssh-rsa", "ssh-ed25519");
    let cut = &RSA_PUB[..90];
    let after =
        format!("---- BEGIN SSH2 PUBLIC KEY ----\n{}\n---- END SSH2 PUBLIC KEY ----\nmore", blob(RSA_PUB));
    for text in
        ["", " ", "ssh-rsa", "ssh-rsa ", "ssh-rsa AAAA", "bogus", "AAAA", &two, &limited, &other, cut, &after]
    {
        check_refused(text, &give);
    }
    for text in [RSA_PEM, ED25519_PEM, RSA_PPK] {
        check_refused(text, &expect!["this is a private key: keep it, and give the file that ends in .pub"]);
    }
    check_refused(
        include_str!("vectors/ecdsa.pub"),
        &expect!["it is neither an RSA nor an ED25519 key; `ssh-keygen -t ed25519` makes one"],
    );
    check_refused(
        include_str!("vectors/rsa3072.pub"),
        &expect!["it is an RSA key of 3072 bits; RSA keys have 1024, 2048 or 4096 bits"],
    );
    check_refused(
        &"x".repeat(9000),
        &expect!["it has more than 8192 bytes; give what `ssh-keygen -y -f KEY` prints, all on one line"],
    );
    // A point that is not on the curve, and an even modulus.
    let mut bytes = STANDARD.decode(blob(ED25519_PUB)).unwrap();
    bytes[19..].copy_from_slice(&[2; 32]);
    check_refused(
        &format!("ssh-ed25519 {}", STANDARD.encode(&bytes)),
        &expect!["its numbers are no key; give what `ssh-keygen -y -f KEY` prints, all on one line"],
    );
    let mut bytes = STANDARD.decode(blob(RSA_PUB)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    check_refused(
        &format!("ssh-rsa {}", STANDARD.encode(&bytes)),
        &expect!["its numbers are no key; give what `ssh-keygen -y -f KEY` prints, all on one line"],
    );
}

#[test]
fn a_name_cannot_be_another_line() {
    let half = import(ED25519_PUB, " a\nssh-rsa AAAA\r\0 ").unwrap();
    assert_eq!(half.openssh, format!("ssh-ed25519 {} assh-rsa AAAA", blob(ED25519_PUB)));
    let created = create(KeyKind::Ed25519, None, PrivateFormat::Ppk, "a\nPrivate-MAC: 0").unwrap();
    assert!(created.private.expose().contains("\nComment: aPrivate-MAC: 0\n"));
}

#[test]
fn lengths_that_are_not_made() {
    let refused = |kind, bits| create(kind, Some(bits), PrivateFormat::Pem, "name").unwrap_err();
    for bits in [0, 1024, 2047, 3072, 8192] {
        assert!(matches!(refused(KeyKind::Rsa, bits), Error::Bits { bits: found } if found == bits));
    }
    assert!(matches!(refused(KeyKind::Ed25519, 2048), Error::BitsOfEd25519));
}

#[test]
fn a_private_half_is_in_no_debug_output() {
    let created = create(KeyKind::Ed25519, None, PrivateFormat::Pem, "name").unwrap();
    assert!(created.private.expose().starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
    let shown = format!("{created:?}");
    assert!(shown.contains("PrivateHalf(..)") && !shown.contains("PRIVATE KEY"), "{shown}");
}

/// What is made is read by those who will use it. Needs `openssl` and `ssh-keygen`.
#[test]
fn what_is_made_is_what_others_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    for (kind, bits) in [(KeyKind::Rsa, None), (KeyKind::Rsa, Some(4096)), (KeyKind::Ed25519, None)] {
        let created = create(kind, bits, PrivateFormat::Pem, "my key").unwrap();
        write_private(&path, created.private.expose());
        let Some(shown) = output(Command::new("ssh-keygen").args(["-y", "-f"]).arg(&path)) else { return };
        assert_eq!(blob(&shown).trim_end(), blob(&created.public.openssh));
        assert!(created.public.openssh.ends_with(" my key"));
        let length = output(Command::new("ssh-keygen").args(["-l", "-f"]).arg(&path)).unwrap();
        match kind {
            KeyKind::Ed25519 => {
                assert_eq!(
                    length.split(' ').nth(1).unwrap(),
                    format!("SHA256:{}", created.public.fingerprint.trim_end_matches('='))
                );
            }
            KeyKind::Rsa => {
                assert!(length.starts_with(&bits.unwrap_or(2048).to_string()), "{length}");
                assert!(created.private.expose().starts_with("-----BEGIN RSA PRIVATE KEY-----\n"));
                check_by_openssl(&path, &created.public.fingerprint, &created.public.openssh);
            }
        }
    }
}

/// The commands that the EC2 user guide has for fingerprints.
fn check_by_openssl(path: &Path, created: &str, line: &str) {
    let run = |script: &str| {
        let script = format!("{script} 2>/dev/null");
        output(Command::new("sh").args(["-euc", &script, "sh"]).arg(path)).unwrap()
    };
    if output(Command::new("sh").args(["-c", "command -v openssl || true"])).unwrap().is_empty() {
        return;
    }
    let digest = |script| run(script).trim_end().rsplit(' ').next().unwrap().to_owned();
    let pkcs8 = "openssl pkcs8 -in $1 -inform PEM -outform DER -topk8 -nocrypt | openssl sha1 -c";
    assert_eq!(digest(pkcs8), created);
    let imported = import(line, "name").unwrap().fingerprint;
    assert_eq!(digest("openssl rsa -in $1 -pubout -outform DER | openssl md5 -c"), imported);
    assert_eq!(run("openssl rsa -in $1 -check -noout"), "RSA key ok\n");
}

fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// None where there is no such program here.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

proptest! {
    #[test]
    fn no_text_does_harm(text in "(ssh-(rsa|ed25519) )?(---- BEGIN SSH2 PUBLIC KEY ----)?[A-Za-z0-9+/=: \\\\\n]{0,200}(---- END SSH2 PUBLIC KEY ----)?", any in any::<String>()) {
        let _ = (import(&text, &any), import(&any, &text));
    }

    #[test]
    fn no_blob_does_harm(bytes in vec(any::<u8>(), 0..300), algorithm in "ssh-(rsa|ed25519) |") {
        let _ = import(&format!("{algorithm}{}", STANDARD.encode(bytes)), "name");
    }

    /// A key with a few bytes changed is refused, or is another key that is one line all the same.
    #[test]
    fn no_changed_key_does_harm(changes in vec((any::<usize>(), any::<u8>()), 1..4), cut in any::<usize>(), form in 0..3_usize) {
        let der = rsa().to_public_key().to_public_key_der().unwrap();
        let mut bytes = match form {
            0 => STANDARD.decode(blob(RSA_PUB)).unwrap(),
            1 => STANDARD.decode(blob(ED25519_PUB)).unwrap(),
            _ => der.into_vec(),
        };
        for (place, byte) in changes {
            let place = place % bytes.len();
            bytes[place] = byte;
        }
        if cut % 4 == 0 {
            bytes.truncate(cut % bytes.len());
        }
        let algorithm = ["ssh-rsa ", "ssh-ed25519 ", ""][form];
        if let Ok(half) = import(&format!("{algorithm}{}", STANDARD.encode(bytes)), "name") {
            prop_assert!(half.openssh.lines().count() == 1);
            let again = import(&half.openssh, "name").unwrap();
            prop_assert_eq!(again, half);
        }
    }
}
