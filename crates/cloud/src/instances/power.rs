//! `StartInstances`, `StopInstances`, `RebootInstances`, `TerminateInstances`.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use ec2vmm_model::{
    Instance,
    ids::InstanceId,
    lifecycle::{Request, State},
    transitions::Refusal,
};
use ec2vmm_store::{Stored, Transaction};

use super::{StateChange, get_all};
use crate::{
    Cloud, Error,
    admission::{Claims, Lacking},
    cloud::{Counts, Inner},
    error::Noun,
    events::{self, EventKind},
    ids::parse_all,
    record, types,
};

impl Cloud {
    /// `StartInstances`: all of them, or none.
    ///
    /// # Errors
    /// Ids that make no sense or are nobody's, an instance in a wrong state, no capacity.
    pub async fn start_instances(&self, ids: &[String]) -> Result<Vec<StateChange>, Error> {
        self.ask(ids, Request::Start).await
    }

    /// `StopInstances`: all of them, or none. `force` does not ask the guest.
    ///
    /// # Errors
    /// Ids that make no sense or are nobody's, an instance in a wrong state or protected.
    pub async fn stop_instances(&self, ids: &[String], force: bool) -> Result<Vec<StateChange>, Error> {
        self.ask(ids, if force { Request::ForceStop } else { Request::Stop }).await
    }

    /// `RebootInstances`: all of them, or none.
    ///
    /// # Errors
    /// Ids that make no sense or are nobody's, an instance in a wrong state.
    pub async fn reboot_instances(&self, ids: &[String]) -> Result<(), Error> {
        self.ask(ids, Request::Reboot).await.map(drop)
    }

    /// `TerminateInstances`: all of them, or none.
    ///
    /// # Errors
    /// Ids that make no sense or are nobody's, an instance that is protected.
    pub async fn terminate_instances(&self, ids: &[String]) -> Result<Vec<StateChange>, Error> {
        self.ask(ids, Request::Terminate).await
    }

    async fn ask(&self, ids: &[String], request: Request) -> Result<Vec<StateChange>, Error> {
        let ids = parse_all::<InstanceId>(ids, Noun::Instance)?;
        let claims = Arc::new(Mutex::new(self.inner.admission.claims()));
        let (claimed, inner) = (Arc::clone(&claims), Arc::clone(&self.inner));
        let body = move |transaction: &mut Transaction<'_>| {
            let found = get_all(transaction, &ids)?;
            let mut claims = claimed.lock().unwrap_or_else(PoisonError::into_inner);
            // All are asked before anything is written.
            let asked: Vec<Asked> = found
                .iter()
                .map(|before| inner.decide(before, request, &mut claims))
                .collect::<Result<_, _>>()?;
            inner.write(transaction, asked, request)
        };
        let done = move |inner: &Arc<Inner>, changed: &Vec<Answer>| {
            claims.lock().unwrap_or_else(PoisonError::into_inner).keep();
            for instance in changed.iter().filter_map(|(_, instance)| instance.as_ref()) {
                inner.follow(instance);
                count_of(&inner.counts, request).fetch_add(1, Ordering::Relaxed);
                if instance.state == State::Pending {
                    inner.reconcilers.start_requested(&instance.id, instance.generation);
                }
                inner.wake(&instance.id);
            }
        };
        let changed = self.inner.commit(body, done).await?;
        Ok(changed.into_iter().map(|(change, _)| change).collect())
    }
}

/// What a request did, and the record where it changed.
type Answer = (StateChange, Option<Arc<Instance>>);

/// What a request makes of an instance.
struct Asked {
    before: Stored<Instance>,
    after: Instance,
    change: StateChange,
    changed: bool,
}

impl Inner {
    fn decide(
        &self,
        before: &Stored<Instance>,
        request: Request,
        claims: &mut Claims,
    ) -> Result<Asked, Error> {
        let mut after = (*before.record).clone();
        let transition = after.ask(request, self.now()).map_err(|why| refused(&after, request, why))?;
        if transition.changed && after.state == State::Pending {
            let kind = types::find_runnable(&after.instance_type)?;
            claims
                .machine(&after.id, after.generation, kind.into())
                .map_err(|Lacking { free }| self.no_capacity(kind.name, kind.into(), free))?;
        }
        let change = StateChange { id: after.id.clone(), previous: transition.from, current: transition.to };
        Ok(Asked { before: before.clone(), after, change, changed: transition.changed })
    }

    fn write(
        &self,
        transaction: &mut Transaction<'_>,
        asked: Vec<Asked>,
        request: Request,
    ) -> Result<Vec<Answer>, Error> {
        let now = self.now();
        let mut entries = Vec::new();
        let mut answers = Vec::new();
        for Asked { before, after, change, changed } in asked {
            if !changed {
                answers.push((change, None));
                continue;
            }
            if request == Request::Reboot {
                let (instance, message) = (Some(after.id.clone()), "a reboot was asked for".to_owned());
                entries.push(events::Entry { instance, kind: EventKind::RebootRequested, message });
            }
            entries.extend(record::state_event(&before, &after));
            answers.push((change, Some(record::write(transaction, &before, after, now)?)));
        }
        self.log.write(transaction, now, entries)?;
        Ok(answers)
    }
}

fn refused(instance: &Instance, request: Request, why: Refusal) -> Error {
    let id = instance.id.clone();
    let protected = |what, attribute| Error::Protected { id: instance.id.clone(), what, attribute };
    let terminates = matches!(request, Request::Terminate | Request::ForceTerminate);
    match why {
        Refusal::IncorrectState(_) => Error::IncorrectState {
            id,
            needed: match request {
                Request::Start => "a state from which it can be started",
                Request::Stop | Request::ForceStop => "a state from which it can be stopped",
                Request::Reboot => "a state from which it can be rebooted",
                Request::Terminate | Request::ForceTerminate => "a state from which it can be terminated",
            },
        },
        Refusal::TerminationProtected => protected("terminated", "disableApiTermination"),
        Refusal::StopProtected if terminates => protected("terminated", "disableApiStop"),
        Refusal::StopProtected => protected("stopped", "disableApiStop"),
    }
}

fn count_of(counts: &Counts, request: Request) -> &AtomicU64 {
    match request {
        Request::Start => &counts.started,
        Request::Stop | Request::ForceStop => &counts.stopped,
        Request::Reboot => &counts.rebooted,
        Request::Terminate | Request::ForceTerminate => &counts.terminated,
    }
}
