//! Tags of any resource that can have them: instances, volumes, images, key pairs.

use std::sync::Arc;

use ec2vmm_model::{
    Instance,
    ids::{ImageId, InstanceId, KeyPairId, VolumeId},
    images::Image,
    key_pairs::KeyPair,
    tags::Tags,
    volumes::Volume,
};
use ec2vmm_store::{Expect, Record, Transaction};

use crate::{
    Cloud, Error,
    error::Noun,
    events::{self, EventKind},
    ids::parse,
};

impl Cloud {
    /// `CreateTags`: adds tags to resources or replaces their values; all or nothing.
    ///
    /// # Errors
    /// Resources that are not there, tags that make no sense or are too many.
    pub async fn create_tags(&self, resources: &[String], tags: &Tags) -> Result<(), Error> {
        check(tags)?;
        let added = tags.clone();
        self.change_tags(resources, move |tags| {
            tags.0.extend(added.0.clone());
            match tags.0.len() > TAGS_MAX {
                true => Err(Error::TagLimit(TAGS_MAX)),
                false => Ok(()),
            }
        })
        .await
    }

    /// `DeleteTags`: by key, and by value where one is given; no keys at all: every tag. A tag that is not
    /// there is no error.
    ///
    /// # Errors
    /// Resources that are not there.
    pub async fn delete_tags(
        &self,
        resources: &[String],
        tags: &[(String, Option<String>)],
    ) -> Result<(), Error> {
        let gone = tags.to_vec();
        self.change_tags(resources, move |tags| {
            let goes = |key: &str, value: &str| {
                let named = |(name, only): &(String, Option<String>)| {
                    name == key && only.as_ref().is_none_or(|only| only == value)
                };
                gone.is_empty() || gone.iter().any(named)
            };
            tags.0.retain(|key, value| !goes(key, value));
            Ok(())
        })
        .await
    }

    async fn change_tags(
        &self,
        resources: &[String],
        change: impl Fn(&mut Tags) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        if resources.is_empty() {
            return Err(Error::Missing("resourceIdSet"));
        }
        if resources.len() > RESOURCES_MAX {
            let message = format!("At most {RESOURCES_MAX} resources can be tagged at once.");
            return Err(Error::InvalidValue { message, hint: None });
        }
        let (resources, inner) = (resources.to_vec(), Arc::clone(&self.inner));
        let body = move |transaction: &mut Transaction<'_>| {
            let mut entries = Vec::new();
            for id in &resources {
                let instance = change_one(transaction, id, &change)?;
                entries.extend(instance.map(|instance| events::Entry {
                    instance: Some(instance),
                    kind: EventKind::Modified,
                    message: "changed tags".to_owned(),
                }));
            }
            inner.log.write(transaction, inner.now(), entries)
        };
        self.inner.commit(body, |_, ()| {}).await
    }
}

/// Tags that can be given.
pub(crate) fn check(tags: &Tags) -> Result<(), Error> {
    let invalid = |message: String| Err(Error::InvalidValue { message, hint: None });
    if tags.0.len() > TAGS_MAX {
        return Err(Error::TagLimit(TAGS_MAX));
    }
    for (key, value) in &tags.0 {
        if key.is_empty() || key.chars().count() > KEY_CHARS_MAX {
            return invalid(format!("Tag keys must have 1 to {KEY_CHARS_MAX} characters."));
        }
        if value.chars().count() > VALUE_CHARS_MAX {
            return invalid(format!("Tag values must have at most {VALUE_CHARS_MAX} characters."));
        }
        if key.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("aws:")) {
            return invalid("Tag keys starting with 'aws:' are reserved for internal use".to_owned());
        }
    }
    Ok(())
}

/// Changes one resource's tags. Gives its id where it is an instance.
fn change_one(
    transaction: &mut Transaction<'_>,
    id: &str,
    change: &impl Fn(&mut Tags) -> Result<(), Error>,
) -> Result<Option<InstanceId>, Error> {
    match id.split_once('-').map_or("", |(prefix, _)| prefix) {
        InstanceId::PREFIX => {
            let id = parse::<InstanceId>(id, Noun::Instance)?;
            update(transaction, id.as_str(), Noun::Instance, |it: &mut Instance| change(&mut it.tags))?;
            return Ok(Some(id));
        }
        VolumeId::PREFIX => {
            let id = parse::<VolumeId>(id, Noun::Volume)?;
            update(transaction, id.as_str(), Noun::Volume, |it: &mut Volume| change(&mut it.tags))?;
        }
        ImageId::PREFIX => {
            let id = parse::<ImageId>(id, Noun::Image)?;
            update(transaction, id.as_str(), Noun::Image, |it: &mut Image| change(&mut it.tags))?;
        }
        KeyPairId::PREFIX => {
            let id = parse::<KeyPairId>(id, Noun::KeyPairId)?;
            update(transaction, id.as_str(), Noun::KeyPairId, |it: &mut KeyPair| change(&mut it.tags))?;
        }
        _ => return Err(Error::NotFound { noun: Noun::Resource, ids: vec![id.chars().take(64).collect()] }),
    }
    Ok(None)
}

fn update<R: Record>(
    transaction: &mut Transaction<'_>,
    id: &str,
    noun: Noun,
    change: impl FnOnce(&mut R) -> Result<(), Error>,
) -> Result<(), Error> {
    let Some(stored) = transaction.get::<R>(id)? else {
        return Err(Error::NotFound { noun, ids: vec![id.to_owned()] });
    };
    let mut record = (*stored.record).clone();
    change(&mut record)?;
    // Named twice, it was written by this transaction already.
    Ok(transaction.put(record, Expect::Version(stored.version))?)
}

/// EC2's limits.
const TAGS_MAX: usize = 50;
const KEY_CHARS_MAX: usize = 128;
const VALUE_CHARS_MAX: usize = 256;
/// Resources that one request can name.
const RESOURCES_MAX: usize = 1_000;
