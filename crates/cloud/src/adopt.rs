//! Takes over what is there: compares the records with the host, goes on with what was begun, and finds
//! what belongs to nobody.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ec2vmm_host::host::FoundMachine;
use ec2vmm_model::{
    Instance, Time,
    ids::{InstanceId, InterfaceId, VolumeId},
    lifecycle::{News, State},
    plan::{Machine, Presence, Step},
};
use ec2vmm_store::{Keys, Stored};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::{
    Error,
    cloud::Inner,
    events::{self, EventKind},
    news,
    reconcile::Seen,
    sweep,
};

/// The host as it was found, to look things up.
struct Found<'i> {
    machines: HashMap<&'i InstanceId, &'i FoundMachine>,
    interfaces: HashSet<&'i InterfaceId>,
    volumes: HashSet<&'i VolumeId>,
}

pub(crate) async fn take_over(cloud: &Arc<Inner>, now: Time) -> Result<(), Error> {
    let inventory = cloud.host.inventory().await?;
    let instances = cloud.store.range::<Instance>(&Keys::all())?;
    let found = Found {
        machines: inventory.machines.iter().map(|machine| (&machine.instance, machine)).collect(),
        interfaces: inventory.interfaces.iter().collect(),
        volumes: inventory.volumes.iter().collect(),
    };
    for instance in &instances {
        cloud.follow(instance);
        cloud.reconcilers.adopt(&instance.id, found.seen(instance));
    }
    let adopted = adopted(&instances, &found);
    info!(instances = instances.len(), adopted = adopted.len(), "took over what is there");
    log(cloud, now, adopted).await?;
    if !sweep::orphans(cloud, &inventory).await {
        warn!("what belongs to nobody could not all be removed: it will be tried again");
    }
    record_ends(cloud, &instances).await?;
    for instance in &instances {
        if !matches!(cloud.next_step(instance)?, Step::Done) {
            if instance.state == State::Pending {
                cloud.reconcilers.start_requested(&instance.id, instance.generation);
            }
            cloud.wake(&instance.id);
        }
    }
    Ok(())
}

/// Records the machines that have ended while nobody watched, before anybody can ask: nobody is told that
/// an instance runs of which it is known that it does not.
async fn record_ends(cloud: &Arc<Inner>, instances: &[Stored<Instance>]) -> Result<(), Error> {
    let mut ends = JoinSet::new();
    for instance in instances {
        if let Step::Record(ended @ News::Ended(_)) = cloud.next_step(instance)? {
            let (cloud, instance) = (Arc::clone(cloud), instance.clone());
            ends.spawn(async move { cloud.record(&instance, ended).await });
        }
    }
    while let Some(recorded) = ends.join_next().await {
        if let Ok(Err(error)) = recorded {
            // The reconciler tries again.
            warn!(error = &error as &dyn std::error::Error, "the end of a machine could not be recorded");
        }
    }
    Ok(())
}

impl Found<'_> {
    fn seen(&self, instance: &Instance) -> Seen {
        // What was found may lack something; what was not found is not there.
        let presence = |there: bool| if there { Presence::Unknown } else { Presence::Absent };
        let volumes = instance.volumes.iter().map(|id| (id.clone(), presence(self.volumes.contains(id))));
        // A record without a file still has to go, where the volume goes.
        let goes = matches!(instance.state, State::ShuttingDown | State::Terminated);
        Seen::found(
            news::machine_of(self.machines.get(&instance.id).copied()),
            presence(self.interfaces.contains(&instance.interface.id)),
            if goes { HashMap::new() } else { volumes.collect() },
        )
    }
}

fn adopted(instances: &[Stored<Instance>], found: &Found<'_>) -> Vec<events::Entry> {
    let running = instances.iter().filter_map(|instance| {
        match news::machine_of(found.machines.get(&instance.id).copied()) {
            Machine::Running { generation } => Some((instance, generation)),
            Machine::Absent | Machine::Ended { .. } => None,
        }
    });
    let entries = running.map(|(instance, generation)| events::Entry {
        instance: Some(instance.id.clone()),
        kind: EventKind::Adopted,
        message: format!("found its machine running, generation {generation}"),
    });
    entries.collect()
}

async fn log(cloud: &Arc<Inner>, now: Time, entries: Vec<events::Entry>) -> Result<(), Error> {
    for some in entries.chunks(ENTRIES_AT_ONCE) {
        let (some, inner) = (some.to_vec(), Arc::clone(cloud));
        cloud.commit(move |transaction| inner.log.write(transaction, now, some.clone()), |_, ()| {}).await?;
    }
    Ok(())
}

const ENTRIES_AT_ONCE: usize = 1_000;
