//! Key pairs.

use std::sync::Arc;

use ec2vmm_model::{
    ids::KeyPairId,
    key_pairs::{KeyKind, KeyPair},
    tags::Tags,
};
use ec2vmm_store::{Expect, Keys, Store, Stored, Transaction};

use crate::{
    Cloud, Error,
    cloud::blocking,
    error::Noun,
    filters::{Fields, Filter, Matcher},
    ids, key_material, random, tags,
};

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
    pub private_key: key_material::PrivateHalf,
}

/// A key pair to be imported.
#[derive(Clone, Debug)]
pub struct ImportKeyPair {
    /// Its name, unique.
    pub name: String,
    /// The public half, as OpenSSH writes it, in the form of RFC 4716, or base64 of DER.
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

impl Cloud {
    /// `CreateKeyPair`.
    ///
    /// # Errors
    /// A name that is taken or makes no sense, a length that this kind does not have.
    pub async fn create_key_pair(&self, wanted: CreateKeyPair) -> Result<CreatedKeyPair, Error> {
        check(&wanted.name, &wanted.tags)?;
        let (kind, bits, format) = (wanted.kind, wanted.bits, wanted.format);
        self.check_free(&wanted.name)?;
        let name = wanted.name.clone();
        // A long RSA key takes seconds.
        let made = blocking(move || Ok(key_material::create(kind, bits, format, &name)?)).await?;
        let key_pair = KeyPair {
            id: KeyPairId::from_random(random()),
            name: wanted.name,
            kind,
            fingerprint: made.public.fingerprint,
            public_key: made.public.openssh,
            created: self.inner.now(),
            tags: wanted.tags,
        };
        let key_pair = self.put_key_pair(key_pair).await?;
        Ok(CreatedKeyPair { key_pair, private_key: made.private })
    }

    /// `ImportKeyPair`.
    ///
    /// # Errors
    /// A name that is taken or makes no sense, a text that is no public key of a kind that EC2 has.
    pub async fn import_key_pair(&self, wanted: ImportKeyPair) -> Result<Arc<KeyPair>, Error> {
        check(&wanted.name, &wanted.tags)?;
        let read = key_material::import(&wanted.public_key, &wanted.name)?;
        let key_pair = KeyPair {
            id: KeyPairId::from_random(random()),
            name: wanted.name,
            kind: read.kind,
            fingerprint: read.fingerprint,
            public_key: read.openssh,
            created: self.inner.now(),
            tags: wanted.tags,
        };
        self.put_key_pair(key_pair).await
    }

    /// `DescribeKeyPairs`: not in pages, in the order of their names.
    ///
    /// # Errors
    /// Names or ids that are nobody's, filters that do not exist.
    pub async fn describe_key_pairs(&self, what: &DescribeKeyPairs) -> Result<Vec<Arc<KeyPair>>, Error> {
        let matcher = Matcher::new(&what.filters, FIELDS, |key: &KeyPair| &key.tags)?;
        let all = all(&self.inner.store)?;
        let unknown = |given: &[String], is: fn(&KeyPair) -> &str| -> Vec<String> {
            let missing = given.iter().filter(|given| !all.iter().any(|key| is(key) == given.as_str()));
            missing.map(|name| name.chars().take(NAME_CHARS_MAX).collect()).collect()
        };
        let names = unknown(&what.names, |key| &key.name);
        if !names.is_empty() {
            return Err(Error::NotFound { noun: Noun::KeyPair, ids: names });
        }
        for id in &what.ids {
            ids::parse::<KeyPairId>(id, Noun::KeyPairId)?;
        }
        let ids = unknown(&what.ids, |key| key.id.as_str());
        if !ids.is_empty() {
            return Err(Error::NotFound { noun: Noun::KeyPairId, ids });
        }
        let is_named = |key: &KeyPair| {
            (what.names.is_empty() && what.ids.is_empty())
                || what.names.contains(&key.name)
                || what.ids.iter().any(|id| id == key.id.as_str())
        };
        let mut shown: Vec<Arc<KeyPair>> = all
            .iter()
            .filter(|key| is_named(key) && matcher.passes(key))
            .map(|key| Arc::clone(&key.record))
            .collect();
        shown.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(shown)
    }

    /// `DeleteKeyPair`, by name or id: one that is not there is no error, and gives nothing. Instances keep
    /// the public half.
    ///
    /// # Errors
    /// The store cannot write.
    pub async fn delete_key_pair(&self, name_or_id: &str) -> Result<Option<Arc<KeyPair>>, Error> {
        let wanted = name_or_id.to_owned();
        let body = move |transaction: &mut Transaction<'_>| {
            let all = transaction.range::<KeyPair>(&Keys::all())?;
            // A name may look like an id: names first.
            let found = all.iter().find(|key| key.name == wanted);
            let found = found.or_else(|| all.iter().find(|key| key.id.as_str() == wanted));
            let Some(key) = found else { return Ok(None) };
            transaction.delete::<KeyPair>(key.id.as_str(), Expect::Version(key.version))?;
            Ok(Some(Arc::clone(&key.record)))
        };
        self.inner.commit(body, |_, _| {}).await
    }

    fn check_free(&self, name: &str) -> Result<(), Error> {
        match all(&self.inner.store)?.iter().any(|key| key.name == name) {
            true => Err(Error::Duplicate { noun: Noun::KeyPair, name: name.to_owned() }),
            false => Ok(()),
        }
    }

    async fn put_key_pair(&self, key_pair: KeyPair) -> Result<Arc<KeyPair>, Error> {
        let key_pair = Arc::new(key_pair);
        let body = move |transaction: &mut Transaction<'_>| {
            let all = transaction.range::<KeyPair>(&Keys::all())?;
            if all.iter().any(|key| key.name == key_pair.name) {
                return Err(Error::Duplicate { noun: Noun::KeyPair, name: key_pair.name.clone() });
            }
            transaction.put((*key_pair).clone(), Expect::Absent)?;
            Ok(Arc::clone(&key_pair))
        };
        self.inner.commit(body, |_, _| {}).await
    }
}

/// The public half of the key pair of that name, for a launch.
pub(crate) fn public_key(
    transaction: &mut Transaction<'_>,
    name: Option<&str>,
) -> Result<Option<String>, Error> {
    let Some(name) = name else { return Ok(None) };
    let all = transaction.range::<KeyPair>(&Keys::all())?;
    match all.iter().find(|key| key.name == name) {
        Some(key) => Ok(Some(key.public_key.clone())),
        None => Err(Error::NotFound {
            noun: Noun::KeyPair,
            ids: vec![name.chars().take(NAME_CHARS_MAX).collect()],
        }),
    }
}

fn all(store: &Store) -> Result<Vec<Stored<KeyPair>>, Error> {
    Ok(store.range::<KeyPair>(&Keys::all())?)
}

fn check(name: &str, given: &Tags) -> Result<(), Error> {
    let is_name = (1..=NAME_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
        && name.trim() == name;
    if !is_name {
        return Err(Error::InvalidValue {
            message: "Value for parameter KeyName is invalid. It must have 1 to 255 ASCII characters, no spaces at its ends.".to_owned(),
            hint: None,
        });
    }
    tags::check(given)
}

const FIELDS: Fields<KeyPair> = &[
    ("key-name", |it| vec![it.name.clone()]),
    ("key-pair-id", |it| vec![it.id.to_string()]),
    ("fingerprint", |it| vec![it.fingerprint.clone()]),
];

const NAME_CHARS_MAX: usize = 255;
