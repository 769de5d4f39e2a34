//! Tags of any resource that can have them: instances, volumes, images, key pairs.

use std::sync::Arc;

use ec2vmm_model::{
    Instance,
    ids::{ImageId, InstanceId, KeyPairId, VolumeId},
    images::Image,
    key_pairs::KeyPair,
    tags::{self, Tags},
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
        self.change_tags(resources, move |tags| tags.add(added.0.clone()).map_err(refused)).await
    }

    /// `DeleteTags`: by key, and by value where one is given; no keys at all: every tag. A tag that is not
    /// there is no error.
    ///
    /// # Errors
    /// Resources that are not there, tags of AWS's own.
    pub async fn delete_tags(
        &self,
        resources: &[String],
        tags: &[(String, Option<String>)],
    ) -> Result<(), Error> {
        let gone = tags.to_vec();
        self.change_tags(resources, move |tags| {
            if gone.is_empty() {
                tags.clear();
            }
            for (key, value) in &gone {
                tags.remove(key, value.as_deref()).map_err(refused)?;
            }
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
    Tags::default().add(tags.0.clone()).map_err(refused)
}

/// In EC2's words.
fn refused(error: tags::Error) -> Error {
    let message = match error {
        tags::Error::TooMany { .. } => return Error::TagLimit(tags::TAGS_MAX),
        tags::Error::KeyLength { .. } => {
            format!("Tag keys must have 1 to {} characters.", tags::KEY_CHARS_MAX)
        }
        tags::Error::ValueLength { .. } => {
            format!("Tag values must have at most {} characters.", tags::VALUE_CHARS_MAX)
        }
        tags::Error::Character { key } => format!("Tag '{key}' holds a control character."),
        tags::Error::Reserved { .. } => {
            "Tag keys starting with 'aws:' are reserved for internal use".to_owned()
        }
        tags::Error::Duplicate { key } => format!("Duplicate tag key '{key}' specified."),
    };
    Error::InvalidValue { message, hint: None }
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

/// Resources that one request can name.
const RESOURCES_MAX: usize = 1_000;
