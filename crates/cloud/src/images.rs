//! Images: files that were registered.
//!
//! Invariant: what a volume is a layer over has a record, registered or retired, so that its file is known
//! and its id is not given again.

use std::{path::PathBuf, sync::Arc};

use ec2vmm_host::host::{self, ImageFile};
use ec2vmm_model::{
    InstanceType,
    ids::ImageId,
    images::{DiskFormat, Image},
    tags::Tags,
    volumes::Volume,
};
use ec2vmm_store::{Expect, Keys, Record, Store, Transaction};
use serde::{Deserialize, Serialize};

use crate::{
    Cloud, Error,
    error::Noun,
    filters::{Fields, Filter, Matcher},
    ids::{parse, parse_all},
    page::{Page, Paging},
    random, tags,
};

/// An image to be registered.
#[derive(Clone, Debug)]
pub struct RegisterImage {
    /// Its name, unique: 3 to 128 letters, digits and `()[] ./-'@_`.
    pub name: String,
    /// What it is, in words: up to 255 characters.
    pub description: String,
    /// The disk's file, an absolute path or a name in the pool's folder `images`. It must stay.
    pub file: PathBuf,
    /// How the file holds the disk.
    pub format: DiskFormat,
    /// Who can log in with the key pair.
    pub login_user: String,
    /// Tags.
    pub tags: Tags,
    /// The id that it shall have; nothing for a new one.
    pub id: Option<String>,
}

/// Which images.
#[derive(Clone, Debug, Default)]
pub struct DescribeImages {
    /// These, all of which must be there. None: all.
    pub ids: Vec<String>,
    /// That meet these.
    pub filters: Vec<Filter>,
    /// Page by page.
    pub paging: Paging,
}

impl Cloud {
    /// `RegisterImage`: the host looks at the file first.
    ///
    /// # Errors
    /// A name that is taken or makes no sense, a file that is not there or cannot be booted.
    pub async fn register_image(&self, wanted: RegisterImage) -> Result<Arc<Image>, Error> {
        check(&wanted)?;
        let id = match &wanted.id {
            Some(id) => parse::<ImageId>(id, Noun::Image)?,
            None => ImageId::from_random(random()),
        };
        let Some(path) = wanted.file.to_str().map(str::to_owned) else {
            return Err(Error::InvalidValue {
                message: "The image's path is not UTF-8.".to_owned(),
                hint: None,
            });
        };
        let file = ImageFile { file: wanted.file, format: wanted.format };
        let facts = match self.inner.host.inspect_image(&file).await {
            Ok(facts) => facts,
            Err(host::Error::Image { message, hint }) => return Err(Error::Image { message, hint }),
            Err(error) => return Err(error.into()),
        };
        let image = Arc::new(Image {
            id,
            name: wanted.name,
            description: wanted.description,
            file: path,
            format: wanted.format,
            arch: facts.arch,
            size_bytes: facts.size_bytes,
            login_user: wanted.login_user,
            created: self.inner.now(),
            tags: wanted.tags,
        });
        self.inner.commit(move |transaction| register(transaction, &image), |_, _| {}).await
    }

    /// `DescribeImages`.
    ///
    /// # Errors
    /// Ids that make no sense or are nobody's, filters that do not exist, a page out of range.
    pub async fn describe_images(&self, what: &DescribeImages) -> Result<Page<Arc<Image>>, Error> {
        let matcher = Matcher::new(&what.filters, FIELDS, |image: &Image| &image.tags)?;
        if what.ids.is_empty() {
            let page = what.paging.of_records::<Image>(&self.inner.store, |image| matcher.passes(image))?;
            return Ok(page.map(|image| image.record));
        }
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for id in parse_all::<ImageId>(&what.ids, Noun::Image)? {
            match self.inner.store.get::<Image>(id.as_str())? {
                Some(image) => found.push(image.record),
                None => missing.push(id.to_string()),
            }
        }
        match missing.is_empty() {
            true => Ok(Page::whole(found.into_iter().filter(|image| matcher.passes(image)).collect())),
            false => Err(Error::NotFound { noun: Noun::Image, ids: missing }),
        }
    }

    /// `DeregisterImage`: instances that were launched from it go on; the file must stay as long as they do.
    ///
    /// # Errors
    /// An id that makes no sense or is nobody's.
    pub async fn deregister_image(&self, id: &str) -> Result<(), Error> {
        let id = parse::<ImageId>(id, Noun::Image)?;
        let body = move |transaction: &mut Transaction<'_>| {
            let Some(image) = transaction.get::<Image>(id.as_str())? else {
                return Err(Error::NotFound { noun: Noun::Image, ids: vec![id.to_string()] });
            };
            if is_used(transaction, &id)? {
                transaction.put(RetiredImage((*image.record).clone()), Expect::Any)?;
            }
            transaction.delete::<Image>(id.as_str(), Expect::Version(image.version))?;
            Ok(())
        };
        self.inner.commit(body, |_, ()| {}).await
    }
}

/// An image that nothing can be launched from any more, and that volumes are layers over.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct RetiredImage(Image);

impl Record for RetiredImage {
    const KIND: &'static str = "retired_image";

    fn key(&self) -> String {
        self.0.id.to_string()
    }
}

/// The image of that id, or of that name.
pub(crate) fn find_named(store: &Store, id_or_name: &str) -> Result<Arc<Image>, Error> {
    let id = parse::<ImageId>(id_or_name, Noun::Image);
    // The id first: a name may look like another image's.
    if let Ok(id) = &id
        && let Some(image) = store.get::<Image>(id.as_str())?
    {
        return Ok(image.record);
    }
    let all = store.range::<Image>(&Keys::all())?;
    match all.into_iter().find(|image| image.name == id_or_name) {
        Some(image) => Ok(image.record),
        None => Err(Error::NotFound { noun: Noun::Image, ids: vec![id?.to_string()] }),
    }
}

/// The image is still registered.
pub(crate) fn still_there(transaction: &mut Transaction<'_>, image: &Image) -> Result<(), Error> {
    match transaction.get::<Image>(image.id.as_str())? {
        Some(_) => Ok(()),
        None => Err(Error::NotFound { noun: Noun::Image, ids: vec![image.id.to_string()] }),
    }
}

/// The image of that id, also where it is retired.
pub(crate) fn find_any(store: &Store, id: &ImageId) -> Result<Option<Arc<Image>>, Error> {
    if let Some(image) = store.get::<Image>(id.as_str())? {
        return Ok(Some(image.record));
    }
    let retired = store.get::<RetiredImage>(id.as_str())?;
    Ok(retired.map(|retired| Arc::new(retired.0.clone())))
}

/// The same, in a transaction.
pub(crate) fn find_any_in(
    transaction: &mut Transaction<'_>,
    id: &ImageId,
) -> Result<Option<Arc<Image>>, Error> {
    if let Some(image) = transaction.get::<Image>(id.as_str())? {
        return Ok(Some(image.record));
    }
    let retired = transaction.get::<RetiredImage>(id.as_str())?;
    Ok(retired.map(|retired| Arc::new(retired.0.clone())))
}

/// Where the disk of an image is.
pub(crate) fn file_of(store: &Store, id: &ImageId) -> Result<Option<ImageFile>, Error> {
    let image = find_any(store, id)?;
    Ok(image.map(|image| ImageFile { file: PathBuf::from(&image.file), format: image.format }))
}

/// A volume over this image is gone: a retired one that has no more is forgotten.
pub(crate) fn let_go(transaction: &mut Transaction<'_>, image: Option<&ImageId>) -> Result<(), Error> {
    let Some(image) = image else { return Ok(()) };
    if transaction.get::<RetiredImage>(image.as_str())?.is_some() && !is_used(transaction, image)? {
        transaction.delete::<RetiredImage>(image.as_str(), Expect::Any)?;
    }
    Ok(())
}

/// The kernel on the image runs on the type's processors.
pub(crate) fn check_arch(image: Option<&Image>, kind: &InstanceType) -> Result<(), Error> {
    match image {
        Some(image) if image.arch != kind.arch => {
            Err(Error::Architecture { type_arch: kind.arch.name(), image_arch: image.arch.name() })
        }
        _ => Ok(()),
    }
}

fn register(transaction: &mut Transaction<'_>, image: &Arc<Image>) -> Result<Arc<Image>, Error> {
    let all = transaction.range::<Image>(&Keys::all())?;
    if all.iter().any(|other| other.name == image.name) {
        return Err(Error::Duplicate { noun: Noun::Image, name: image.name.clone() });
    }
    let is_retired = transaction.get::<RetiredImage>(image.id.as_str())?.is_some();
    if is_retired || all.iter().any(|other| other.id == image.id) {
        let message = format!("The image id '{}' is already in use", image.id);
        return Err(Error::InvalidValue { message, hint: None });
    }
    transaction.put((**image).clone(), Expect::Absent)?;
    Ok(Arc::clone(image))
}

fn is_used(transaction: &mut Transaction<'_>, id: &ImageId) -> Result<bool, Error> {
    let volumes = transaction.range::<Volume>(&Keys::all())?;
    Ok(volumes.iter().any(|volume| volume.image.as_ref() == Some(id)))
}

fn check(wanted: &RegisterImage) -> Result<(), Error> {
    let invalid = |message: &str| Err(Error::InvalidValue { message: message.to_owned(), hint: None });
    let fits = |name: char| name.is_ascii_alphanumeric() || "()[] ./-'@_".contains(name);
    if !(3..=128).contains(&wanted.name.chars().count()) || !wanted.name.chars().all(fits) {
        return invalid(
            "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, '(', ')', '[', ']', ' ', '.', '/', '-', \"'\", '@' and '_'",
        );
    }
    if wanted.description.chars().count() > 255 {
        return invalid("AMI descriptions must be at most 255 characters long");
    }
    let user = &wanted.login_user;
    let is_user = |name: char| name.is_ascii_alphanumeric() || "-_.".contains(name);
    if !(1..=32).contains(&user.len()) || !user.chars().all(is_user) || user.starts_with('-') {
        return invalid("a login name has 1 to 32 letters, digits, '-', '_' and '.'");
    }
    tags::check(&wanted.tags)
}

const FIELDS: Fields<Image> = &[
    ("image-id", |it| vec![it.id.to_string()]),
    ("name", |it| vec![it.name.clone()]),
    ("description", |it| vec![it.description.clone()]),
    ("architecture", |it| vec![it.arch.name().to_owned()]),
    ("creation-date", |it| vec![it.created.to_string()]),
    ("state", |_| vec!["available".to_owned()]),
    ("image-type", |_| vec!["machine".to_owned()]),
    ("root-device-type", |_| vec!["ebs".to_owned()]),
    ("virtualization-type", |_| vec!["hvm".to_owned()]),
    ("is-public", |_| vec!["false".to_owned()]),
];
