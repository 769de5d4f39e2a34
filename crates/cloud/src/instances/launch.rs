//! `RunInstances`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ec2vmm_model::{
    Instance, InstanceType, Time,
    credits::Burstable,
    ids::{InstanceId, InterfaceId, ReservationId, VolumeId},
    images::Image,
    instances::Interface,
    ledger::Entry as LedgerEntry,
    lifecycle::State,
    reasons::StateReason,
    volumes::{Attachment, Volume},
};
use ec2vmm_store::{Expect, Stored, Transaction};
use sha2::{Digest, Sha256};

use super::{Described, LAUNCH_COUNT_MAX, Launch, Reservation};
use crate::{
    Cloud, Error,
    addresses::Lease,
    admission::{Claims, Lacking, Size},
    cloud::Inner,
    events::{self, EventKind},
    images, key_pairs, random, tags,
    tokens::{self, Forgotten, LaunchToken},
    types,
};

impl Cloud {
    /// `RunInstances`: between the counts as many as there is room for, or none at all. The answer comes at
    /// once, with `pending`.
    ///
    /// # Errors
    /// What is asked for makes no sense, is not there, or there is no room for it.
    pub async fn launch(&self, launch: Launch) -> Result<Reservation, Error> {
        let kind = check(&launch)?;
        let digest = digest(&launch)?;
        if let Some(earlier) = self.inner.earlier(&launch, &digest)? {
            return self.inner.again(&earlier);
        }
        let image = images::find_named(&self.inner.store, &launch.image)?;
        images::check_arch(Some(&image), kind)?;
        let size_gib = root_size(&launch, &image)?;
        let mut claims = self.inner.admission.claims();
        let slots = self.inner.claim(&launch, kind, &mut claims)?;
        let reservation = ReservationId::from_random(random());
        let (inner, claims) = (Arc::clone(&self.inner), Mutex::new(claims));
        let body = move |transaction: &mut Transaction<'_>| {
            if let Some(token) = &launch.client_token {
                let key = LaunchToken::key_of(&inner.config.region, token);
                if let Some(used) = transaction.get::<LaunchToken>(&key)? {
                    return Ok(Outcome::Earlier(same(&used, &digest)?));
                }
            }
            // What was found may be gone meanwhile.
            images::still_there(transaction, &image)?;
            let public_key = key_pairs::public_key(transaction, launch.key_name.as_deref())?;
            let draft = Draft { inner: &inner, launch: &launch, image: &image, size_gib, public_key };
            let instances = draft.write(transaction, &slots, &reservation, &digest)?;
            Ok(Outcome::New(instances))
        };
        let done = move |inner: &Arc<Inner>, outcome: &Outcome| {
            // Claims of a repeated launch are dropped here, and given back.
            let mut claims = claims.into_inner().unwrap_or_else(PoisonError::into_inner);
            if let Outcome::New(instances) = outcome {
                claims.keep();
                for instance in instances {
                    inner.follow(instance);
                    inner.counts.launched.fetch_add(1, Ordering::Relaxed);
                    inner.reconcilers.start_requested(&instance.id, instance.generation);
                    inner.wake(&instance.id);
                }
            }
        };
        match self.inner.commit(body, done).await? {
            Outcome::Earlier(token) => self.inner.again(&token),
            Outcome::New(instances) => self.inner.reservation(instances),
        }
    }
}

/// What a launch came to.
enum Outcome {
    New(Vec<Arc<Instance>>),
    Earlier(Arc<LaunchToken>),
}

/// What one instance was given.
struct Slot {
    instance: InstanceId,
    interface: Interface,
}

impl Inner {
    fn earlier(&self, launch: &Launch, digest: &str) -> Result<Option<Arc<LaunchToken>>, Error> {
        let Some(token) = &launch.client_token else { return Ok(None) };
        let used = self.store.get::<LaunchToken>(&LaunchToken::key_of(&self.config.region, token))?;
        used.map(|used| same(&used, digest)).transpose()
    }

    /// The answer that was given before; states may be newer.
    fn again(&self, token: &LaunchToken) -> Result<Reservation, Error> {
        let instances =
            token.instances.iter().filter_map(|id| match self.store.get::<Instance>(id.as_str()) {
                Ok(None) => {
                    let forgotten = self.store.get::<Forgotten>(id.as_str()).transpose()?;
                    Some(forgotten.map(|forgotten| Arc::new(forgotten.0.clone())))
                }
                found => found.map(|found| found.map(|found| found.record)).transpose(),
            });
        let instances: Vec<Arc<Instance>> = instances.collect::<Result<_, _>>()?;
        let mut reservation = self.reservation(instances)?;
        reservation.id = token.reservation.clone();
        Ok(reservation)
    }

    fn reservation(&self, instances: Vec<Arc<Instance>>) -> Result<Reservation, Error> {
        let id = instances.first().map(|first| first.reservation.clone());
        let mut users = HashMap::new();
        let described = instances.into_iter().map(|record| {
            let version = ec2vmm_store::Version::UNCOMMITTED;
            self.described(Stored { record, version }, &mut users)
        });
        let instances = described.collect::<Result<Vec<Described>, _>>()?;
        Ok(Reservation { id: id.unwrap_or_else(|| ReservationId::from_random(random())), instances })
    }

    /// As many machines and addresses as there are, between the counts.
    fn claim(&self, launch: &Launch, kind: &InstanceType, claims: &mut Claims) -> Result<Vec<Slot>, Error> {
        if let Some(wanted) = launch.private_address {
            self.check_address(launch, wanted)?;
        }
        let mut slots = Vec::new();
        while slots.len() < usize::try_from(launch.max_count).unwrap_or(usize::MAX) {
            let is_enough = slots.len() >= usize::try_from(launch.min_count).unwrap_or(usize::MAX);
            let id = InstanceId::from_random(random());
            match claims.machine(&id, FIRST_GENERATION, kind.into()) {
                Ok(()) => {}
                Err(_) if is_enough => break,
                Err(Lacking { free }) => return Err(self.no_capacity(kind.name, kind.into(), free)),
            }
            let Some(address) = claims.address(&id, launch.private_address) else {
                claims.give_back(&id);
                if is_enough {
                    break;
                }
                return Err(match launch.private_address {
                    Some(wanted) => Error::AddressInUse(wanted),
                    None => Error::NoAddresses { subnet: self.network.subnet.to_string() },
                });
            };
            let interface = Interface {
                id: InterfaceId::from_random(random()),
                vpc: self.network.vpc.clone(),
                subnet: self.network.subnet.clone(),
                mac: mac_of(address),
                address,
            };
            slots.push(Slot { instance: id, interface });
        }
        Ok(slots)
    }

    fn check_address(&self, launch: &Launch, wanted: std::net::Ipv4Addr) -> Result<(), Error> {
        if launch.max_count > 1 {
            return Err(Error::InvalidCombination {
                message: "The parameter privateIpAddress cannot be used with a count greater than 1"
                    .to_owned(),
            });
        }
        if !self.admission.is_in_range(wanted) {
            return Err(Error::InvalidValue {
                message: format!("Address {wanted} does not fall within the subnet's address range"),
                hint: Some(format!(
                    "the range is {}/{}, less the first four and the last address",
                    self.network.base, self.network.prefix
                )),
            });
        }
        match self.admission.owner_of(wanted) {
            Some(_) => Err(Error::AddressInUse(wanted)),
            None => Ok(()),
        }
    }

    pub(super) fn no_capacity(&self, instance_type: &str, size: Size, free: Size) -> Error {
        Error::Capacity {
            instance_type: instance_type.to_owned(),
            zone: format!("{}a", self.config.region),
            hint: format!(
                "it takes {} vCPUs and {} MiB; free are {} vCPUs and {} MiB: stop or terminate instances, or take a smaller type",
                size.vcpus, size.memory_mib, free.vcpus, free.memory_mib
            ),
        }
    }
}

/// All that goes into the records of a launch.
struct Draft<'a> {
    inner: &'a Inner,
    launch: &'a Launch,
    image: &'a Image,
    size_gib: u32,
    public_key: Option<String>,
}

impl Draft<'_> {
    fn write(
        &self,
        transaction: &mut Transaction<'_>,
        slots: &[Slot],
        reservation: &ReservationId,
        digest: &str,
    ) -> Result<Vec<Arc<Instance>>, Error> {
        let now = self.inner.now();
        let mut instances = Vec::with_capacity(slots.len());
        let mut entries = Vec::with_capacity(slots.len());
        for (index, slot) in (0..).zip(slots) {
            let volume = self.volume(slot, now);
            let instance = Arc::new(self.instance(slot, index, reservation, &volume.id, now));
            transaction.put(LedgerEntry::volume(&volume, &instance.region), Expect::Any)?;
            transaction.put(volume, Expect::Absent)?;
            transaction.put(Lease::new(&slot.interface, &slot.instance), Expect::Absent)?;
            transaction.put((*instance).clone(), Expect::Absent)?;
            entries.push(events::Entry {
                instance: Some(instance.id.clone()),
                kind: EventKind::Launched,
                message: format!("launched as {} from {}", instance.instance_type, instance.image),
            });
            instances.push(instance);
        }
        if let Some(token) = &self.launch.client_token {
            let token = LaunchToken {
                region: self.inner.config.region.clone(),
                token: token.clone(),
                digest: digest.to_owned(),
                reservation: reservation.clone(),
                instances: slots.iter().map(|slot| slot.instance.clone()).collect(),
                forgotten: 0,
                ended: None,
            };
            transaction.put(token, Expect::Absent)?;
        }
        self.inner.log.write(transaction, now, entries)?;
        Ok(instances)
    }

    fn volume(&self, slot: &Slot, now: Time) -> Volume {
        Volume {
            id: VolumeId::from_random(random()),
            size_gib: self.size_gib,
            kind: self.launch.root.kind,
            image: Some(self.image.id.clone()),
            created: now,
            attachment: Some(Attachment {
                instance: slot.instance.clone(),
                device: ROOT_DEVICE.to_owned(),
                attached: now,
                delete_on_termination: self.launch.root.delete_on_termination,
            }),
            tags: self.launch.volume_tags.clone(),
        }
    }

    fn instance(
        &self,
        slot: &Slot,
        launch_index: u32,
        reservation: &ReservationId,
        volume: &VolumeId,
        now: Time,
    ) -> Instance {
        let launch = self.launch;
        Instance {
            id: slot.instance.clone(),
            reservation: reservation.clone(),
            launch_index,
            region: self.inner.config.region.clone(),
            client_token: launch.client_token.clone(),
            image: self.image.id.clone(),
            instance_type: launch.instance_type.clone(),
            key_name: launch.key_name.clone(),
            public_key: self.public_key.clone(),
            user_data: launch
                .user_data
                .as_ref()
                .filter(|data| !data.is_empty())
                .map(|data| STANDARD.encode(data)),
            state: State::Pending,
            generation: FIRST_GENERATION,
            first_launch: true,
            state_since: now,
            forced: false,
            reboot_requested: None,
            state_reason: Some(StateReason::pending()),
            transition_reason: None,
            launched: now,
            terminated: None,
            protection: launch.protection,
            credit_mode: launch
                .credit_mode
                .or_else(|| Some(Burstable::find(&launch.instance_type)?.default_mode)),
            volumes: vec![volume.clone()],
            interface: slot.interface.clone(),
            tags: launch.tags.clone(),
        }
    }
}

/// What needs no record to be wrong.
fn check(launch: &Launch) -> Result<&'static InstanceType, Error> {
    let invalid = |message: String| Err(Error::InvalidValue { message, hint: None });
    let (min, max) = (launch.min_count, launch.max_count);
    if min == 0 || max == 0 {
        return invalid("Invalid value '0' for instance count. It must be at least 1.".to_owned());
    }
    if min > max {
        return invalid(format!("Invalid value '{max}' for maxCount. It must be at least minCount, {min}."));
    }
    if max > LAUNCH_COUNT_MAX {
        return invalid(format!(
            "Invalid value '{max}' for maxCount. It must be at most {LAUNCH_COUNT_MAX}."
        ));
    }
    if launch.image.is_empty() {
        return Err(Error::Missing("imageId"));
    }
    let kind = types::find_runnable(&launch.instance_type)?;
    if launch.credit_mode.is_some() {
        check_credits(kind.name)?;
    }
    super::attributes::check_user_data(launch.user_data.as_deref())?;
    launch.client_token.as_deref().map(tokens::check).transpose()?;
    tags::check(&launch.tags)?;
    tags::check(&launch.volume_tags)?;
    Ok(kind)
}

pub(super) fn check_credits(instance_type: &str) -> Result<(), Error> {
    match Burstable::find(instance_type) {
        Some(_) => Ok(()),
        None => Err(Error::InvalidCombination {
            message: format!(
                "The CreditSpecification parameter is not supported with the instance type {instance_type}."
            ),
        }),
    }
}

fn root_size(launch: &Launch, image: &Image) -> Result<u32, Error> {
    let invalid = |message: String| Err(Error::InvalidValue { message, hint: None });
    let kind = launch.root.kind;
    if !kind.can_be_root() {
        return invalid(format!("The volume type '{}' cannot be used for a root volume.", kind.name()));
    }
    let (least, most) = (*kind.sizes_gib().start(), *kind.sizes_gib().end());
    let needed = u32::try_from(image.size_bytes.div_ceil(1 << 30)).unwrap_or(u32::MAX);
    let size = launch.root.size_gib.unwrap_or(needed.max(least));
    if size < needed {
        return invalid(format!(
            "Volume of size {size}GB is smaller than image '{}', expect size >= {needed}GB",
            image.id
        ));
    }
    if size < least {
        return invalid(format!("Volume of {size}GiB is too small; minimum is {least}GiB."));
    }
    if size > most {
        return invalid(format!("Volume of {size}GiB is too large; maximum is {most}GiB."));
    }
    Ok(size)
}

fn same(used: &Stored<LaunchToken>, digest: &str) -> Result<Arc<LaunchToken>, Error> {
    match used.digest == digest {
        true => Ok(Arc::clone(&used.record)),
        false => Err(Error::TokenReused),
    }
}

/// What tells one request's parameters from another's. The order of fields is part of it for ever: tokens
/// are remembered across versions.
fn digest(launch: &Launch) -> Result<String, Error> {
    let Launch {
        image,
        instance_type,
        min_count,
        max_count,
        key_name,
        user_data,
        client_token: _,
        tags,
        volume_tags,
        protection,
        credit_mode,
        root,
        private_address,
    } = launch;
    let counts = (min_count, max_count);
    let root = (root.size_gib, root.kind, root.delete_on_termination);
    let rest = (protection, credit_mode, root, private_address);
    let text =
        serde_json::to_vec(&(image, instance_type, counts, key_name, user_data, tags, volume_tags, rest))
            .map_err(|error| Error::InvalidValue { message: error.to_string(), hint: None })?;
    Ok(Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Locally administered, and unique in the network as the address is.
fn mac_of(address: std::net::Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x06, 0x00, a, b, c, d]
}

const FIRST_GENERATION: u64 = 1;
/// As EC2's Debian images name it.
const ROOT_DEVICE: &str = "/dev/xvda";
