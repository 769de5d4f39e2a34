//! Reconcilers: one task for each instance whose record and machine are not in step. A task looks, asks
//! [`plan::next_step`], does that one step, and looks again; one that finds nothing to do ends.
//!
//! Invariants: an instance never has two tasks. What a task remembers between steps is only what the host
//! was seen to have; all of it can be lost. A wake-up is never lost: it starts a task, or makes the one that
//! is there look once more.

mod network_speed;
mod seen;
mod steps;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use ec2vmm_model::{
    Instance,
    ids::InstanceId,
    ledger,
    lifecycle::State,
    plan::{self, Machine, Step},
    volumes::Volume,
};
use ec2vmm_store::{Keys, Stored};
use tokio::{sync::Notify, time::Instant};
use tracing::{Instrument, info_span, warn};

pub(crate) use self::{seen::Seen, steps::hostname};
use crate::{Error, cloud::Inner};

#[derive(Default)]
pub(crate) struct Reconcilers {
    entries: Mutex<HashMap<InstanceId, Entry>>,
    pub(crate) network: tokio::sync::Mutex<()>,
    network_is_there: std::sync::atomic::AtomicBool,
}

#[derive(Default)]
struct Entry {
    seen: Seen,
    /// The task that is at work.
    task: Option<Arc<Notify>>,
    /// It shall look once more.
    woken: bool,
}

/// What comes after a look.
enum Next {
    /// Another look, at once.
    Again,
    /// Another look then, or when it is woken.
    Wait(Duration),
    /// Nothing, until it is woken.
    Settled,
    /// The instance is forgotten.
    Gone,
}

impl Inner {
    /// Sees to it that somebody looks at the instance from now on.
    pub(crate) fn wake(self: &Arc<Self>, instance: &InstanceId) {
        let mut entries = self.reconcilers.entries();
        let entry = entries.entry(instance.clone()).or_default();
        entry.woken = true;
        // One that ended by a panic has let go of its half.
        if let Some(task) = entry.task.as_ref().filter(|task| Arc::strong_count(task) > 1) {
            task.notify_one();
            return;
        }
        let task = Arc::new(Notify::new());
        entry.task = Some(Arc::clone(&task));
        drop(entries);
        let work = Arc::clone(self).reconcile(instance.clone(), task);
        self.tasks.spawn(work.instrument(info_span!(parent: None, "reconcile", %instance)));
    }

    async fn reconcile(self: Arc<Self>, instance: InstanceId, woken: Arc<Notify>) {
        loop {
            self.reconcilers.with(&instance, |entry| entry.woken = false);
            let next = match self.look(&instance).await {
                Ok(next) => next,
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "the record cannot be read");
                    Next::Wait(READ_AGAIN)
                }
            };
            match next {
                Next::Again => {}
                Next::Wait(time) => {
                    tokio::select! {
                        () = tokio::time::sleep(time) => {}
                        () = woken.notified() => {}
                    }
                }
                Next::Settled | Next::Gone => {
                    let mut entries = self.reconcilers.entries();
                    match entries.get_mut(&instance) {
                        Some(entry) if entry.woken && matches!(next, Next::Settled) => continue,
                        Some(entry) => entry.task = None,
                        None => {}
                    }
                    if matches!(next, Next::Gone) {
                        entries.remove(&instance);
                    }
                    return;
                }
            }
        }
    }

    /// One look, and one step.
    async fn look(self: &Arc<Self>, instance: &InstanceId) -> Result<Next, Error> {
        let Some(stored) = self.store.get::<Instance>(instance.as_str())? else { return Ok(Next::Gone) };
        let is_unclear = self.reconcilers.with(instance, |entry| entry.seen.unclear).unwrap_or(false);
        let step = if is_unclear { Step::KillMachine } else { self.next_step(&stored)? };
        let wait = match &step {
            Step::Done => return Ok(Next::Settled),
            // The sweep looks at these from time to time.
            Step::WaitUntil(_) if stored.state == State::Terminated => return Ok(Next::Settled),
            Step::WaitUntil(then) => Some(Duration::from_millis(then.ms_since(self.now()).max(1))),
            step => self.reconcilers.with(instance, |entry| entry.seen.pause(step)).flatten(),
        };
        if let Some(wait) = wait {
            return Ok(Next::Wait(wait));
        }
        let span = info_span!("step", ?step, state = %stored.state, generation = stored.generation);
        let begun = Instant::now();
        let result = match is_unclear {
            true => self.clear_up(&stored).instrument(span).await,
            false => self.perform(&stored, &step).instrument(span).await,
        };
        match result {
            Ok(()) => {
                self.reconcilers.with(instance, |entry| entry.seen.succeeded(&stored, &step, begun));
                Ok(if matches!(step, Step::Forget) { Next::Gone } else { Next::Again })
            }
            Err(error) => {
                self.failed(&stored, &step, &error).await;
                Ok(Next::Again)
            }
        }
    }

    /// What the record and the host come to.
    pub(crate) fn next_step(&self, stored: &Stored<Instance>) -> Result<Step, Error> {
        let volumes = self.volumes_of(stored)?.into_iter().map(|volume| {
            let goes = self.goes_with(stored, &volume)?;
            Ok((volume, goes))
        });
        let volumes = volumes.collect::<Result<Vec<_>, Error>>()?;
        let network = self.reconcilers.network_is_there.load(Ordering::Acquire);
        let grace = self.config.stop_grace;
        let now = self.now();
        let observed =
            self.reconcilers.with(&stored.id, |entry| entry.seen.observed(now, grace, network, &volumes));
        let observed = observed.unwrap_or_else(|| Seen::default().observed(now, grace, network, &volumes));
        Ok(plan::next_step(stored, &observed))
    }
}

impl Inner {
    /// The volume goes when the instance is terminated: it shall, or the instance never ran, so that nothing
    /// was ever written to it and there may be no file. One that was detached is nobody's.
    fn goes_with(&self, instance: &Instance, volume: &Volume) -> Result<bool, Error> {
        match &volume.attachment {
            None => Ok(false),
            Some(attachment) if attachment.delete_on_termination => Ok(true),
            Some(_) if instance.state != State::ShuttingDown => Ok(false),
            Some(_) => {
                let runs = Keys::prefix(&format!("{}compute", ledger::instance_prefix(&instance.id)));
                Ok(self.store.range::<ledger::Entry>(&runs.limit(1))?.is_empty())
            }
        }
    }
}

impl Reconcilers {
    pub(crate) fn at_work(&self) -> u64 {
        self.entries().values().filter(|entry| entry.task.is_some()).count() as u64
    }

    /// What was seen of an instance when the cloud took over.
    pub(crate) fn adopt(&self, instance: &InstanceId, seen: Seen) {
        self.entries().entry(instance.clone()).or_default().seen = seen;
    }

    /// A machine has ended.
    pub(crate) fn ended(&self, instance: &InstanceId, generation: u64, machine: Machine) {
        self.with(instance, |entry| entry.seen.ended(generation, machine));
    }

    /// A machine has rebooted. True if it was asked to.
    pub(crate) fn rebooted(&self, instance: &InstanceId, generation: u64) -> bool {
        self.with(instance, |entry| entry.seen.rebooted(generation)).unwrap_or(false)
    }

    /// The request that the present start is for was made now.
    pub(crate) fn start_requested(&self, instance: &InstanceId, generation: u64) {
        self.entries().entry(instance.clone()).or_default().seen.start_requested(generation);
    }

    pub(crate) fn machines_that_run(&self) -> Vec<(InstanceId, u64)> {
        let entries = self.entries();
        let running = entries.iter().filter_map(|(id, entry)| Some((id.clone(), entry.seen.running()?)));
        running.collect()
    }

    fn with<T>(&self, instance: &InstanceId, act: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.entries().get_mut(instance).map(act)
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<InstanceId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const READ_AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ec2vmm_host::simulated::{Settings, Simulated};
    use ec2vmm_model::ids::InstanceId;
    use ec2vmm_store::Store;
    use tokio::sync::Notify;

    use super::Entry;
    use crate::{Cloud, Config, SystemClock};

    #[tokio::test]
    async fn a_task_that_is_no_more_is_replaced() {
        let host = Arc::new(Simulated::new(Settings::default()));
        let store = Store::in_memory().unwrap();
        let cloud = Cloud::start(store, host, Arc::new(SystemClock), Config::default()).await.unwrap();
        let id = InstanceId::from_random(1);
        let dead = Entry { task: Some(Arc::new(Notify::new())), ..Entry::default() };
        cloud.inner.reconcilers.entries().insert(id.clone(), dead);
        cloud.inner.wake(&id);
        // There is no such instance: the new task sees so, and ends.
        while cloud.inner.reconcilers.entries().contains_key(&id) {
            tokio::task::yield_now().await;
        }
        cloud.shut_down().await;
    }
}
