//! Operations on instances.

mod attributes;
mod describe;
mod launch;
mod power;

use std::{net::Ipv4Addr, sync::Arc};

use ec2vmm_model::{
    Instance,
    ids::{InstanceId, ReservationId},
    instances::{CreditMode, GuestShutdown, Protection},
    lifecycle::State,
    tags::Tags,
    volumes::{Volume, VolumeKind},
};

use ec2vmm_store::{Store, Stored, Transaction};

use crate::{
    Error,
    error::Noun,
    filters::Filter,
    ids::{self, parse_all},
    page::Paging,
};

/// What is to be launched.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// Id or name of the image.
    pub image: String,
    /// Name of the instance type.
    pub instance_type: String,
    /// At least so many, or none at all.
    pub min_count: u32,
    /// At most so many.
    pub max_count: u32,
    /// Name of a key pair.
    pub key_name: Option<String>,
    /// User data, not encoded: at most [`USER_DATA_BYTES_MAX`].
    pub user_data: Option<Vec<u8>>,
    /// A request that is repeated with the same token has the first one's result: up to 64 ASCII characters.
    pub client_token: Option<String>,
    /// Tags of the instances.
    pub tags: Tags,
    /// Tags of their volumes.
    pub volume_tags: Tags,
    /// What protects them, and what their own power-off means.
    pub protection: Protection,
    /// How CPU credits are counted. Nothing: the type's default.
    pub credit_mode: Option<CreditMode>,
    /// The root volume.
    pub root: RootVolume,
    /// The private address; one instance only.
    pub private_address: Option<Ipv4Addr>,
}

/// What is said of a root volume.
#[derive(Clone, Debug)]
pub struct RootVolume {
    /// Size, GiB. Nothing: the image's, or the least that there is of the kind.
    pub size_gib: Option<u32>,
    /// Kind.
    pub kind: VolumeKind,
    /// It goes when the instance is terminated.
    pub delete_on_termination: bool,
}

/// What came of a launch.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// Its id.
    pub id: ReservationId,
    /// The instances, in the order of their launch index.
    pub instances: Vec<Described>,
}

/// An instance as it is shown.
#[derive(Clone, Debug)]
pub struct Described {
    /// The record.
    pub instance: Arc<Instance>,
    /// Its volumes, the root first. None once it is terminated.
    pub volumes: Vec<Arc<Volume>>,
    /// Who can log in with the key pair, by its image.
    pub login_user: Option<String>,
}

/// Which instances.
#[derive(Clone, Debug, Default)]
pub struct DescribeInstances {
    /// These, all of which must be there. None: all. Not together with `paging.max_results`.
    pub ids: Vec<String>,
    /// That meet these.
    pub filters: Vec<Filter>,
    /// Page by page.
    pub paging: Paging,
}

/// What a request did to an instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StateChange {
    /// Which.
    pub id: InstanceId,
    /// Its state before.
    pub previous: State,
    /// Its state now.
    pub current: State,
}

/// What is to be changed; what is nothing stays.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Another instance type: only while it is stopped.
    pub instance_type: Option<String>,
    /// Other user data, not encoded; empty for none: only while it is stopped.
    pub user_data: Option<Vec<u8>>,
    /// Whether `TerminateInstances` is refused.
    pub disable_api_termination: Option<bool>,
    /// Whether `StopInstances` is refused.
    pub disable_api_stop: Option<bool>,
    /// What a power-off from inside means.
    pub on_guest_shutdown: Option<GuestShutdown>,
    /// How CPU credits are counted: burstable types only.
    pub credit_mode: Option<CreditMode>,
}

/// EC2's limit.
pub const USER_DATA_BYTES_MAX: usize = 16 * 1024;

/// Most instances that one request can ask for.
pub const LAUNCH_COUNT_MAX: u32 = 1_000;

impl Default for RootVolume {
    fn default() -> Self {
        Self { size_gib: None, kind: VolumeKind::Gp3, delete_on_termination: true }
    }
}

/// The instance of that id.
pub(crate) fn find(store: &Store, id: &str) -> Result<Stored<Instance>, Error> {
    let id = ids::parse::<InstanceId>(id, Noun::Instance)?;
    let found = store.get::<Instance>(id.as_str())?;
    found.ok_or_else(|| Error::NotFound { noun: Noun::Instance, ids: vec![id.to_string()] })
}

/// The instances of those ids, each once. All must be there.
pub(crate) fn find_all(store: &Store, ids: &[String]) -> Result<Vec<Stored<Instance>>, Error> {
    all_found(&parse_all(ids, Noun::Instance)?, |id| store.get::<Instance>(id.as_str()))
}

/// The same, in a transaction.
fn get_all(transaction: &mut Transaction<'_>, ids: &[InstanceId]) -> Result<Vec<Stored<Instance>>, Error> {
    all_found(ids, |id| transaction.get::<Instance>(id.as_str()))
}

fn all_found(
    ids: &[InstanceId],
    mut get: impl FnMut(&InstanceId) -> Result<Option<Stored<Instance>>, ec2vmm_store::Error>,
) -> Result<Vec<Stored<Instance>>, Error> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for id in ids {
        match get(id)? {
            Some(instance) => found.push(instance),
            None => missing.push(id.to_string()),
        }
    }
    match missing.is_empty() {
        true => Ok(found),
        false => Err(Error::NotFound { noun: Noun::Instance, ids: missing }),
    }
}
