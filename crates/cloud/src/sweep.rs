//! Removes what is too old, and what belongs to nobody.
//!
//! Invariant: every record is written before anything is made for it on the host, and goes only after that
//! is gone. So what is on the host and had no record *afterwards* belongs to nobody, whatever else is
//! under way.

use std::{collections::HashSet, sync::Arc};

use ec2vmm_host::host::{self, Inventory};
use ec2vmm_model::{
    Instance,
    ids::{InstanceId, InterfaceId},
    lifecycle::State,
    plan::TERMINATED_SHOWN_MS,
    volumes::Volume,
};
use ec2vmm_store::{Expect, Keys, Stored, Transaction};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::{
    Error,
    cloud::Inner,
    events::{self, EventKind, LoggedEvent},
    tokens::{Forgotten, LaunchToken},
};

/// Sweeps from time to time.
pub(crate) async fn keep(cloud: Arc<Inner>) {
    let mut ticks = interval(cloud.config.sweep_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut since_orphans = 0_u32;
    loop {
        ticks.tick().await;
        if let Err(error) = old_things(&cloud).await {
            warn!(error = &error as &dyn std::error::Error, "what is too old could not be removed");
        }
        since_orphans += 1;
        if since_orphans >= ORPHANS_EVERY {
            since_orphans = 0;
            match cloud.host.inventory().await {
                // What could not be removed is met again at the next sweep.
                Ok(inventory) => drop(orphans(&cloud, &inventory).await),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "the host cannot be looked at");
                }
            }
        }
    }
}

async fn old_things(cloud: &Arc<Inner>) -> Result<(), Error> {
    let now = cloud.now();
    for instance in cloud.store.range::<Instance>(&Keys::all())? {
        let shown_ms = now.ms_since(instance.terminated.unwrap_or(instance.state_since));
        let is_old = instance.state == State::Terminated && shown_ms >= TERMINATED_SHOWN_MS;
        if instance.terminated.is_some_and(|terminated| terminated > now) {
            mend_time(cloud, &instance).await?;
        }
        // Whatever happened to a task: what is on its way goes on.
        if is_old || instance.state.is_passing() {
            cloud.wake(&instance.id);
        }
    }
    let tokens = cloud.store.range::<LaunchToken>(&Keys::all())?;
    let over: Vec<_> = tokens.iter().filter(|token| token.is_over(now)).cloned().collect();
    for token in over {
        let body = move |transaction: &mut Transaction<'_>| {
            let key = LaunchToken::key_of(&token.region, &token.token);
            for id in &token.instances {
                transaction.delete::<Forgotten>(id.as_str(), Expect::Any)?;
            }
            Ok(transaction.delete::<LaunchToken>(&key, Expect::Version(token.version))?)
        };
        cloud.commit(body, |_, _| {}).await?;
    }
    loop {
        let excess = cloud.log.excess(&cloud.store, cloud.config.events_max)?;
        if excess.is_empty() {
            return Ok(());
        }
        let body = move |transaction: &mut Transaction<'_>| {
            for key in &excess {
                transaction.delete::<LoggedEvent>(key, Expect::Any)?;
            }
            Ok(())
        };
        cloud.commit(body, |_, ()| {}).await?;
    }
}

/// A clock went back behind the termination: its hour counts from now, not from then.
async fn mend_time(cloud: &Arc<Inner>, instance: &Stored<Instance>) -> Result<(), Error> {
    let (inner, id) = (Arc::clone(cloud), instance.id.clone());
    let body = move |transaction: &mut Transaction<'_>| {
        let Some(stored) = transaction.get::<Instance>(id.as_str())? else { return Ok(()) };
        let mended = Instance { terminated: Some(inner.now()), ..(*stored.record).clone() };
        Ok(transaction.put(mended, Expect::Version(stored.version))?)
    };
    cloud.commit(body, |_, ()| {}).await
}

/// Removes what is in the inventory and has no record now. Tells whether all of it went.
pub(crate) async fn orphans(cloud: &Arc<Inner>, found: &Inventory) -> bool {
    let records = match Records::read(cloud) {
        Ok(records) => records,
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "the records cannot be read");
            return false;
        }
    };
    let host = &cloud.host;
    let mut all = true;
    for machine in found.machines.iter().filter(|machine| !records.instances.contains(&machine.instance)) {
        let id = &machine.instance;
        all &= swept(cloud, "the machine of", id, host.kill_machine(id).await);
        all &= swept(cloud, "what is left of the machine of", id, host.remove_machine(id).await);
    }
    for id in found.interfaces.iter().filter(|id| !records.interfaces.contains(*id)) {
        all &= swept(cloud, "interface", id, host.remove_interface(id).await);
    }
    for id in &found.volumes {
        match cloud.store.get::<Volume>(id.as_str()) {
            Ok(Some(_)) => {}
            Ok(None) => all &= swept(cloud, "volume", id, host.set_aside_volume(id).await),
            Err(_) => all = false,
        }
    }
    for id in found.consoles.iter().filter(|id| !records.instances.contains(*id)) {
        all &= swept(cloud, "the console of", id, host.forget_console(id).await);
    }
    for id in found.networks.iter().filter(|id| **id != cloud.network.vpc) {
        all &= swept(cloud, "network", id, host.remove_network(id).await);
    }
    all
}

fn swept(
    cloud: &Arc<Inner>,
    what: &str,
    id: &impl std::fmt::Display,
    result: Result<(), host::Error>,
) -> bool {
    match result {
        Ok(()) => {
            info!(%id, "removed {what}, which belonged to nobody");
            let message = format!("removed {what} {id}, which belonged to nobody");
            cloud.log(events::Entry { instance: None, kind: EventKind::Swept, message });
            true
        }
        Err(error) => {
            warn!(%id, error = &error as &dyn std::error::Error, "{what} belongs to nobody, and stays");
            false
        }
    }
}

/// Whose things may be on the host.
struct Records {
    instances: HashSet<InstanceId>,
    interfaces: HashSet<InterfaceId>,
}

impl Records {
    fn read(cloud: &Inner) -> Result<Self, Error> {
        let instances = cloud.store.range::<Instance>(&Keys::all())?;
        Ok(Self {
            instances: instances.iter().map(|instance| instance.id.clone()).collect(),
            interfaces: instances.iter().map(|instance| instance.interface.id.clone()).collect(),
        })
    }
}

/// How many sweeps there are to one for what belongs to nobody.
const ORPHANS_EVERY: u32 = 10;
