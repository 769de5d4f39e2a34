//! Does one step of a plan. Each is safe to repeat, and to be the last thing that a daemon does.

use std::sync::{Arc, atomic::Ordering};

use base64::{Engine, engine::general_purpose::STANDARD};
use ec2vmm_host::host::{self, GuestData, InterfacePlan, MachinePlan, VolumePlan};
use ec2vmm_model::{
    Instance, Time,
    credits::Account,
    ids::{InstanceId, VolumeId},
    ledger::Entry as LedgerEntry,
    lifecycle::{AfterLoss, End, Fault, News, StartFailure, State},
    plan::{Machine, Presence, Step},
    volumes::Volume,
};
use ec2vmm_store::{Expect, Keys, Stored, Transaction};
use ec2vmm_vmm_api::FailureKind;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    Error,
    cloud::Inner,
    credits,
    events::{self, EventKind, Timeline, TimelineStep},
    images, network, news,
    reconcile::network_speed,
    record,
    tokens::{Forgotten, LaunchToken},
    types,
};

impl Inner {
    pub(super) async fn perform(
        self: &Arc<Self>,
        stored: &Stored<Instance>,
        step: &Step,
    ) -> Result<(), Error> {
        let id = &stored.id;
        match step {
            Step::EnsureVolume(volume) => {
                self.host.create_volume(&self.volume_plan(volume)?).await?;
                self.saw_volume(id, volume, Presence::Present);
            }
            Step::EnsureNetwork => self.ensure_network().await?,
            Step::EnsureInterface => {
                self.host.ensure_interface(&interface_plan(stored)).await?;
                self.reconcilers.with(id, |entry| entry.seen.interface = Presence::Present);
            }
            Step::StartMachine => self.start_machine(stored).await?,
            Step::Reboot => {
                // Before: it may be done, and tell so, before it has answered.
                self.reconcilers.with(id, |entry| entry.seen.asks_to_reboot());
                self.host.reboot_machine(id, self.config.stop_grace).await?;
                self.reconcilers.with(id, |entry| entry.seen.asked_to_reboot());
            }
            Step::PressPowerButton => {
                self.host.press_power_button(id).await?;
                self.reconcilers.with(id, |entry| entry.seen.pressed());
            }
            Step::KillMachine => {
                self.host.kill_machine(id).await?;
                self.reconcilers.with(id, |entry| entry.seen.killed());
            }
            Step::RemoveMachine => {
                self.host.remove_machine(id).await?;
                self.reconcilers.with(id, |entry| entry.seen.machine = Machine::Absent);
            }
            Step::RemoveInterface => {
                self.host.remove_interface(&stored.interface.id).await?;
                self.reconcilers.with(id, |entry| entry.seen.interface = Presence::Absent);
            }
            Step::DeleteVolume(volume) => {
                self.host.delete_volume(volume).await?;
                self.forget_volume(volume).await?;
                self.saw_volume(id, volume, Presence::Absent);
            }
            Step::Record(news) => {
                let recorded = self.record(stored, news.clone()).await?;
                if recorded && *news == News::Rebooted {
                    self.reconcilers.with(id, |entry| entry.seen.forget_reboot());
                }
            }
            Step::Forget => {
                self.host.forget_console(id).await?;
                self.forget(stored).await?;
            }
            Step::WaitUntil(_) | Step::Done => {}
        }
        Ok(())
    }

    /// A step failed: what is remembered of it decides when it is tried again.
    pub(super) async fn failed(self: &Arc<Self>, stored: &Stored<Instance>, step: &Step, error: &Error) {
        self.counts.steps_failed.fetch_add(1, Ordering::Relaxed);
        let detail = chain(error);
        let for_start = matches!(
            step,
            Step::EnsureVolume(_) | Step::EnsureNetwork | Step::EnsureInterface | Step::StartMachine
        );
        let of_host = matches!(error, Error::Host(_));
        let count = self.reconcilers.with(&stored.id, |entry| {
            if stored.state == State::Pending && for_start && of_host {
                let failure = StartFailure { fault: fault_of(error), detail: detail.clone() };
                entry.seen.start_failed(stored.generation, failure);
                entry.seen.unclear = *step == Step::StartMachine;
                1
            } else {
                entry.seen.step_failed(step)
            }
        });
        warn!(instance = %stored.id, ?step, %detail, "a step failed");
        if let Error::Host(host::Error::NotRunning(_)) = error {
            self.look_at(&stored.id).await;
        } else if count == Some(1) && of_host {
            let message = format!("{step:?}: {detail}");
            let message = message.chars().take(EVENT_CHARS_MAX).collect();
            let kind = EventKind::StepFailed;
            self.log(events::Entry { instance: Some(stored.id.clone()), kind, message });
        }
    }

    /// Ends whatever a start that failed has left.
    pub(super) async fn clear_up(self: &Arc<Self>, stored: &Stored<Instance>) -> Result<(), Error> {
        self.host.kill_machine(&stored.id).await?;
        let machine = Machine::Ended { generation: stored.generation, end: End::Killed };
        self.reconcilers.with(&stored.id, |entry| {
            entry.seen.unclear = false;
            entry.seen.machine = machine;
        });
        Ok(())
    }

    pub(crate) fn volumes_of(&self, instance: &Instance) -> Result<Vec<Arc<Volume>>, Error> {
        let volumes = instance.volumes.iter().map(|id| self.store.get::<Volume>(id.as_str()));
        let found = volumes.filter_map(|volume| volume.map(|found| found.map(|it| it.record)).transpose());
        Ok(found.collect::<Result<_, _>>()?)
    }

    /// The machine was said not to run: sees what became of it.
    async fn look_at(&self, id: &InstanceId) {
        match self.host.inventory().await {
            Ok(inventory) => {
                let found = inventory.machines.iter().find(|found| found.instance == *id);
                let machine = news::machine_of(found);
                self.reconcilers.with(id, |entry| entry.seen.machine = machine);
            }
            Err(error) => warn!(error = &error as &dyn std::error::Error, "the host cannot be looked at"),
        }
    }

    async fn ensure_network(&self) -> Result<(), Error> {
        let _turn = self.reconcilers.network.lock().await;
        if !self.reconcilers.network_is_there.load(Ordering::Acquire) {
            self.host.ensure_network(&network::plan(&self.network)).await?;
            self.reconcilers.network_is_there.store(true, Ordering::Release);
        }
        Ok(())
    }

    async fn start_machine(self: &Arc<Self>, stored: &Stored<Instance>) -> Result<(), Error> {
        let generation = stored.generation;
        let plan = self.machine_plan(stored)?;
        self.reconcilers.start_requested(&stored.id, generation);
        let begun = Instant::now();
        let started = self.host.start_machine(&plan).await?;
        self.reconcilers.with(&stored.id, |entry| {
            entry.seen.start_took(generation, begun, &started.steps);
            entry.seen.started(generation);
        });
        info!("the machine runs");
        Ok(())
    }

    fn machine_plan(&self, instance: &Instance) -> Result<MachinePlan, Error> {
        let kind = types::find(&instance.instance_type).ok_or_else(|| odd("its type is not known"))?;
        let user_data = instance.user_data.as_ref().map(|encoded| STANDARD.decode(encoded)).transpose();
        Ok(MachinePlan {
            instance: instance.id.clone(),
            generation: instance.generation,
            instance_type: instance.instance_type.clone(),
            vcpus: u8::try_from(kind.vcpus).map_err(|_| odd("its type has too many vCPUs"))?,
            memory_mib: kind.memory_mib,
            throttle: credits::at_start(&self.store, instance, self.now(), self.config.credits_every)?,
            volumes: instance.volumes.clone(),
            instance_store_gb: kind.instance_store_gb,
            interfaces: vec![instance.interface.id.clone()],
            network: network_speed::limit(kind),
            guest: GuestData {
                public_keys: instance.public_key.iter().cloned().collect(),
                hostname: hostname(instance),
                user_data: user_data.map_err(|_| odd("its user data is not base64"))?,
            },
        })
    }

    fn volume_plan(&self, id: &VolumeId) -> Result<VolumePlan, Error> {
        let volume = self.store.get::<Volume>(id.as_str())?.ok_or_else(|| odd("its volume has no record"))?;
        let image = match &volume.image {
            Some(image) => {
                Some(images::file_of(&self.store, image)?.ok_or_else(|| odd("its image has no record"))?)
            }
            None => None,
        };
        Ok(VolumePlan { id: id.clone(), size_gib: volume.size_gib, image })
    }

    fn saw_volume(&self, id: &InstanceId, volume: &VolumeId, presence: Presence) {
        self.reconcilers.with(id, |entry| entry.seen.volumes.insert(volume.clone(), presence));
    }

    /// Writes what became of the machine, if the record is still the one that was looked at. True if it was.
    pub(crate) async fn record(
        self: &Arc<Self>,
        stored: &Stored<Instance>,
        news: News,
    ) -> Result<bool, Error> {
        let after_loss = if self.config.restart_on_boot { AfterLoss::StartAgain } else { AfterLoss::Stop };
        let (id, version, inner) = (stored.id.clone(), stored.version, Arc::clone(self));
        let steps = self.reconcilers.with(&id, |entry| entry.seen.timeline(stored.generation));
        let steps = steps.unwrap_or_default();
        let lost = self.lost_at(&id, &news);
        let body = move |transaction: &mut Transaction<'_>| {
            let now = inner.now();
            let Some(before) = transaction.get::<Instance>(id.as_str())? else { return Ok(None) };
            if before.version != version {
                return Ok(None);
            }
            let mut after = (*before.record).clone();
            if !after.hear(&news, after_loss, now).changed {
                return Err(odd("its record does not take the news"));
            }
            if matches!(news, News::Started | News::StartFailed(_)) {
                put_timeline(transaction, &before, &steps)?;
            }
            if news == News::Started {
                credits::open(transaction, &after, now, inner.config.credits_every)?;
            }
            if after.state == State::Terminated {
                detach(transaction, &after, now)?;
            }
            let instance = Some(after.id.clone());
            let told = told(&news).map(|(kind, message)| events::Entry { instance, kind, message });
            inner.log.write(
                transaction,
                now,
                told.into_iter().chain(record::state_event(&before, &after)),
            )?;
            let until = lost.map_or(now, |lost| lost.min(now));
            Ok(Some(record::write(transaction, &before, after, until)?))
        };
        let after =
            self.commit(body, |inner, after| after.iter().for_each(|after| inner.follow(after))).await?;
        if let Some(after) = &after {
            info!(state = %after.state, "recorded");
        }
        Ok(after.is_some())
    }

    /// When a machine was last known to run that went down with the host, while nobody looked.
    fn lost_at(&self, id: &InstanceId, news: &News) -> Option<Time> {
        let ran_since = self.reconcilers.with(id, |entry| entry.seen.ran).unwrap_or(false);
        self.last_alive.filter(|_| *news == News::Ended(End::Vanished) && !ran_since)
    }

    /// The volume's file is gone.
    async fn forget_volume(self: &Arc<Self>, id: &VolumeId) -> Result<(), Error> {
        let (id, inner) = (id.clone(), Arc::clone(self));
        let body = move |transaction: &mut Transaction<'_>| {
            if let Some(volume) = transaction.get::<Volume>(id.as_str())? {
                record::close_volume(transaction, &volume, inner.now())?;
                transaction.delete::<Volume>(id.as_str(), Expect::Any)?;
                images::let_go(transaction, volume.image.as_ref())?;
            }
            Ok(())
        };
        self.commit(body, |_, ()| {}).await
    }

    async fn forget(self: &Arc<Self>, stored: &Stored<Instance>) -> Result<(), Error> {
        let (instance, inner) = (Arc::clone(&stored.record), Arc::clone(self));
        let body = move |transaction: &mut Transaction<'_>| {
            let id = instance.id.as_str();
            if let Some(token) = &instance.client_token {
                let key = LaunchToken::key_of(&instance.region, token);
                let used = transaction.get::<LaunchToken>(&key)?;
                if let Some(used) = used.filter(|used| used.instances.contains(&instance.id)) {
                    let mut token = (*used.record).clone();
                    token.forget(&instance, inner.now());
                    transaction.put(token, Expect::Version(used.version))?;
                    transaction.put(Forgotten::new(&instance), Expect::Any)?;
                }
            }
            transaction.delete::<Timeline>(id, Expect::Any)?;
            transaction.delete::<Account>(id, Expect::Any)?;
            transaction.delete::<Instance>(id, Expect::Any)?;
            Ok(())
        };
        self.commit(body, |_, ()| {}).await
    }

    /// Writes an event that goes with no record, without waiting.
    pub(crate) fn log(self: &Arc<Self>, entry: events::Entry) {
        let (cloud, inner) = (Arc::clone(self), Arc::clone(self));
        self.tasks.spawn(async move {
            let body = move |transaction: &mut Transaction<'_>| {
                inner.log.write(transaction, inner.now(), [entry.clone()])
            };
            if let Err(error) = cloud.commit(body, |_, ()| {}).await {
                warn!(error = &error as &dyn std::error::Error, "an event is lost");
            }
        });
    }
}

pub(crate) fn hostname(instance: &Instance) -> String {
    format!("ip-{}", instance.interface.address.to_string().replace('.', "-"))
}

fn interface_plan(instance: &Instance) -> InterfacePlan {
    let interface = &instance.interface;
    InterfacePlan {
        id: interface.id.clone(),
        vpc: interface.vpc.clone(),
        mac: interface.mac,
        address: interface.address,
        hostname: hostname(instance),
    }
}

fn put_timeline(
    transaction: &mut Transaction<'_>,
    instance: &Instance,
    steps: &[TimelineStep],
) -> Result<(), Error> {
    let timeline = Timeline {
        instance: instance.id.clone(),
        generation: instance.generation,
        requested: instance.launched,
        steps: steps.to_vec(),
    };
    Ok(transaction.put(timeline, Expect::Any)?)
}

/// The volumes that outlive an instance belong to nobody from now on.
fn detach(transaction: &mut Transaction<'_>, instance: &Instance, now: Time) -> Result<(), Error> {
    for id in &instance.volumes {
        let Some(stored) = transaction.get::<Volume>(id.as_str())? else { continue };
        let mut volume = (*stored.record).clone();
        if volume.attachment.take().is_none() {
            continue;
        }
        let entries =
            transaction.range::<LedgerEntry>(&Keys::prefix(&ec2vmm_model::ledger::volume_prefix(id)))?;
        for entry in entries.iter().filter(|entry| entry.to.is_none()) {
            let mut ended = (*entry.record).clone();
            let goes_on = ended.continued(ended.charge.clone(), None, now);
            transaction.put(ended, Expect::Version(entry.version))?;
            transaction.put(goes_on, Expect::Any)?;
        }
        transaction.put(volume, Expect::Version(stored.version))?;
    }
    Ok(())
}

/// What is told of the news itself, beside the state that it leads to.
fn told(news: &News) -> Option<(EventKind, String)> {
    let ended = |how: &str| Some((EventKind::MachineEnded, format!("the machine ended: {how}")));
    match news {
        News::Ended(End::PoweredOff) => ended("it was powered off"),
        News::Ended(End::Failed { detail }) => {
            ended(&detail.chars().take(EVENT_CHARS_MAX).collect::<String>())
        }
        News::Ended(End::Killed) => ended("it was killed"),
        News::Ended(End::Vanished) => ended("there is no trace of it"),
        News::Rebooted => Some((EventKind::Rebooted, events::BOOTS_AGAIN.to_owned())),
        News::Started | News::StartFailed(_) | News::Cleared => None,
    }
}

fn fault_of(error: &Error) -> Fault {
    match error {
        Error::Host(host::Error::NoRoom { .. }) => Fault::NoRoom,
        Error::Host(host::Error::Image { .. }) => Fault::Image,
        Error::Host(host::Error::Ended(failure)) => match failure.kind {
            FailureKind::Memory | FailureKind::Cpus => Fault::NoRoom,
            FailureKind::NoSuchImage
            | FailureKind::NotADisk
            | FailureKind::BrokenQcow2
            | FailureKind::BrokenPartitionTable
            | FailureKind::BrokenFileSystem
            | FailureKind::NoKernel
            | FailureKind::WrongKernel => Fault::Image,
            _ => Fault::Host,
        },
        _ => Fault::Host,
    }
}

/// An error and its causes, after colons.
fn chain(error: &Error) -> String {
    let mut text = match error {
        Error::Host(error) => error.to_string(),
        Error::Store(error) => error.to_string(),
        error => error.to_string(),
    };
    let mut cause = match error {
        Error::Host(error) => std::error::Error::source(error),
        Error::Store(error) => std::error::Error::source(error),
        error => std::error::Error::source(error),
    };
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// What must not be, and is no fault of the host's: tried again, for it may be put right.
fn odd(message: &str) -> Error {
    Error::Host(host::Error::Other { message: message.to_owned(), hint: None })
}

const EVENT_CHARS_MAX: usize = 500;
