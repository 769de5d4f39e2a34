//! Volumes. So far each is some instance's root.

use std::sync::Arc;

use ec2vmm_model::{
    ids::VolumeId,
    volumes::{Attachment, Volume},
};
use ec2vmm_store::{Expect, Transaction};
use tracing::warn;

use crate::{
    Cloud, Error,
    error::Noun,
    filters::{Fields, Filter, Matcher},
    ids::{parse, parse_all},
    images,
    page::{Page, Paging},
    record,
};

/// Which volumes.
#[derive(Clone, Debug, Default)]
pub struct DescribeVolumes {
    /// These, all of which must be there. None: all.
    pub ids: Vec<String>,
    /// That meet these.
    pub filters: Vec<Filter>,
    /// Page by page.
    pub paging: Paging,
}

impl Cloud {
    /// `DescribeVolumes`.
    ///
    /// # Errors
    /// Ids that make no sense or are nobody's, filters that do not exist, a page out of range.
    pub async fn describe_volumes(&self, what: &DescribeVolumes) -> Result<Page<Arc<Volume>>, Error> {
        let matcher = Matcher::new(&what.filters, FIELDS, |volume: &Volume| &volume.tags)?;
        if what.ids.is_empty() {
            let page =
                what.paging.of_records::<Volume>(&self.inner.store, |volume| matcher.passes(volume))?;
            return Ok(page.map(|volume| volume.record));
        }
        if what.paging.max_results.is_some() || what.paging.next_token.is_some() {
            return Err(Error::InvalidCombination {
                message: "The parameter volumeSet cannot be used with the parameter maxResults".to_owned(),
            });
        }
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for id in parse_all::<VolumeId>(&what.ids, Noun::Volume)? {
            match self.inner.store.get::<Volume>(id.as_str())? {
                Some(volume) => found.push(volume.record),
                None => missing.push(id.to_string()),
            }
        }
        match missing.is_empty() {
            true => Ok(Page::whole(found.into_iter().filter(|volume| matcher.passes(volume)).collect())),
            false => Err(Error::NotFound { noun: Noun::Volume, ids: missing }),
        }
    }

    /// `DeleteVolume`: one that outlived its instance.
    ///
    /// # Errors
    /// An id that makes no sense or is nobody's; one that is attached.
    pub async fn delete_volume(&self, id: &str) -> Result<(), Error> {
        let id = parse::<VolumeId>(id, Noun::Volume)?;
        let (inner, gone) = (Arc::clone(&self.inner), id.clone());
        let body = move |transaction: &mut Transaction<'_>| {
            let Some(volume) = transaction.get::<Volume>(id.as_str())? else {
                return Err(Error::NotFound { noun: Noun::Volume, ids: vec![id.to_string()] });
            };
            if let Some(Attachment { instance, .. }) = &volume.attachment {
                return Err(Error::VolumeInUse { volume: id.clone(), instance: instance.clone() });
            }
            record::close_volume(transaction, &volume, inner.now())?;
            transaction.delete::<Volume>(id.as_str(), Expect::Version(volume.version))?;
            images::let_go(transaction, volume.image.as_ref())
        };
        self.inner.commit(body, |_, ()| {}).await?;
        // Without a record it is nobody's: what cannot be removed now, the sweep removes.
        if let Err(error) = self.inner.host.delete_volume(&gone).await {
            warn!(volume = %gone, error = &error as &dyn std::error::Error, "the volume's file stays for now");
        }
        Ok(())
    }
}

fn attached<T: ToString>(volume: &Volume, what: impl Fn(&Attachment) -> T) -> Vec<String> {
    volume.attachment.iter().map(|attachment| what(attachment).to_string()).collect()
}

const FIELDS: Fields<Volume> = &[
    ("volume-id", |it| vec![it.id.to_string()]),
    ("volume-type", |it| vec![it.kind.name().to_owned()]),
    ("size", |it| vec![it.size_gib.to_string()]),
    ("status", |it| vec![if it.attachment.is_some() { "in-use" } else { "available" }.to_owned()]),
    ("create-time", |it| vec![it.created.to_string()]),
    ("attachment.instance-id", |it| attached(it, |at| at.instance.clone())),
    ("attachment.device", |it| attached(it, |at| at.device.clone())),
    ("attachment.attach-time", |it| attached(it, |at| at.attached)),
    ("attachment.delete-on-termination", |it| attached(it, |at| at.delete_on_termination)),
    ("attachment.status", |it| attached(it, |_| "attached")),
];
