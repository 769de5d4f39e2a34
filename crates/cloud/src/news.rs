//! What machines tell: it is noted, and wakes the reconciler.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ec2vmm_host::host::{Ending, FoundMachine, News, NewsKind};
use ec2vmm_model::{ids::InstanceId, lifecycle::End, plan::Machine};
use ec2vmm_vmm_api::exit::Exit;
use tokio::{sync::broadcast, time::Instant};
use tracing::{debug, warn};

use crate::{cloud::Inner, events};

/// Follows the news for as long as there are any.
pub(crate) async fn follow(cloud: Arc<Inner>, mut told: broadcast::Receiver<News>) {
    let mut guests = Chatter::default();
    loop {
        match told.recv().await {
            Ok(News { instance, generation, kind }) => match kind {
                NewsKind::Ended(ending) => {
                    let ended = Machine::Ended { generation, end: end_of(&ending) };
                    cloud.reconcilers.ended(&instance, generation, ended);
                    cloud.wake(&instance);
                }
                NewsKind::Rebooted => {
                    // One that it was asked for is told when it is recorded: who hears of it finds it done.
                    if cloud.reconcilers.rebooted(&instance, generation) {
                        cloud.wake(&instance);
                    } else {
                        guests.report(&cloud, instance, events::EventKind::Rebooted, events::BOOTS_AGAIN);
                    }
                }
                NewsKind::Panicked => {
                    guests.report(
                        &cloud,
                        instance,
                        events::EventKind::Panicked,
                        "the guest's kernel panicked",
                    );
                }
            },
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                warn!(missed, "fell behind the machines' news: looking at them all");
                look_again(&cloud).await;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Looks at the host where its news may have been missed.
pub(crate) async fn look_again(cloud: &Arc<Inner>) {
    let before = cloud.reconcilers.machines_that_run();
    let found = loop {
        match cloud.host.inventory().await {
            Ok(inventory) => break inventory.machines,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "the host cannot be looked at");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    };
    let found: HashMap<&InstanceId, &FoundMachine> =
        found.iter().map(|found| (&found.instance, found)).collect();
    for (instance, generation) in before {
        let now = machine_of(found.get(&instance).copied());
        if now != (Machine::Running { generation }) {
            cloud.reconcilers.ended(&instance, generation, now);
            cloud.wake(&instance);
        }
    }
}

/// What was found of an instance's machine.
pub(crate) fn machine_of(found: Option<&FoundMachine>) -> Machine {
    match found {
        None => Machine::Absent,
        Some(FoundMachine { generation, ended: None, .. }) => Machine::Running { generation: *generation },
        Some(FoundMachine { generation, ended: Some(ending), .. }) => {
            Machine::Ended { generation: *generation, end: end_of(ending) }
        }
    }
}

fn end_of(ending: &Ending) -> End {
    match ending {
        Ending::Silent => End::Killed,
        Ending::Told { exit: Exit::PowerOff, .. } => End::PoweredOff,
        Ending::Told { exit: Exit::Abandoned, .. } => End::Killed,
        Ending::Told { exit: Exit::Failed(kind), failure } => End::Failed {
            detail: failure.as_ref().map_or_else(|| format!("{kind:?}"), |failure| failure.message.clone()),
        },
    }
}

/// What guests do by themselves. One that reboots all the time does not fill the log.
#[derive(Default)]
struct Chatter(HashMap<InstanceId, Instant>);

impl Chatter {
    fn report(&mut self, cloud: &Arc<Inner>, instance: InstanceId, kind: events::EventKind, message: &str) {
        let now = Instant::now();
        self.0.retain(|_, last| now.duration_since(*last) < QUIET);
        debug!(%instance, ?kind, "the guest");
        if self.0.contains_key(&instance) {
            return;
        }
        self.0.insert(instance.clone(), now);
        let entry = events::Entry { instance: Some(instance), kind, message: message.to_owned() };
        cloud.log(entry);
    }
}

const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// For so long, further news of the same guest is not logged.
const QUIET: Duration = Duration::from_secs(1);
