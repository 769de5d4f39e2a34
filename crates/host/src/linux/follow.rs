//! Follows a machine from its birth, or from when it was found, to its end, and tells what it hears.

use std::{
    os::fd::OwnedFd,
    process::ExitStatus,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use ec2vmm_model::ids::InstanceId;
use ec2vmm_vmm_api::{Event, Exit};
use tokio::{
    sync::{broadcast, watch},
    task::JoinSet,
};

use super::{
    error::{blocking, system},
    machines::has_run,
    pidfd::Process,
    run_dir::MachineDir,
};
use crate::{
    cgroups::Cgroup,
    control::{Control, Events},
    host::{Ending, Error, News, NewsKind},
    violation,
};

/// A machine that is followed.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) instance: InstanceId,
    pub(super) generation: u64,
    pub(super) folder: MachineDir,
    pub(super) cgroup: Cgroup,
    phase: watch::Sender<Phase>,
    began: OnceLock<Began>,
}

/// When a machine began, microseconds since the start of its process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Began {
    /// The kernel was in memory.
    pub(super) loaded_us: u64,
    /// The first instruction was executed.
    pub(super) running_us: u64,
}

/// How far a machine has come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// Nothing was heard of it yet.
    Starting,
    /// It has executed its first instruction.
    Running,
    /// Its process is gone.
    Ended(Ending),
}

/// What is known of a machine beforehand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Known {
    /// It was just started: whoever did it learns how that went; all that it tells is news.
    Fresh,
    /// It was found: what it told before is no news.
    Found,
}

impl Life {
    pub(super) fn new(instance: InstanceId, generation: u64, folder: MachineDir, cgroup: Cgroup) -> Self {
        let phase = watch::Sender::new(Phase::Starting);
        Self { instance, generation, folder, cgroup, phase, began: OnceLock::new() }
    }

    /// How far it has come.
    pub(super) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// When it has begun, if it has, as far as was heard.
    pub(super) fn began(&self) -> Option<Began> {
        self.began.get().copied()
    }

    /// Waits until it runs or has ended.
    pub(super) async fn started(&self) -> Phase {
        self.wait_for(|phase| !matches!(phase, Phase::Starting)).await
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) {
        self.wait_for(|phase| matches!(phase, Phase::Ended(_))).await;
    }

    async fn wait_for(&self, wanted: impl FnMut(&Phase) -> bool) -> Phase {
        match self.phase.subscribe().wait_for(wanted).await {
            Ok(phase) => phase.clone(),
            // We hold the sender ourselves.
            Err(_) => self.phase(),
        }
    }
}

/// Everybody who is followed; dropped, nobody is any more.
#[derive(Debug, Default)]
pub(super) struct Followers(Mutex<JoinSet<()>>);

impl Followers {
    /// Follows a machine's process from now on.
    pub(super) fn start(
        &self,
        life: Life,
        pidfd: OwnedFd,
        news: broadcast::Sender<News>,
        known: Known,
    ) -> Result<Arc<Life>, Error> {
        let process = Process::new(pidfd).map_err(system("following a machine process"))?;
        let life = Arc::new(life);
        let follower = Follower {
            control: Control::new(life.folder.control_socket()),
            life: Arc::clone(&life),
            process,
            news,
            told_until_us: None,
            loaded_us: 0,
            known,
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those who are done are forgotten.
        while all.try_join_next().is_some() {}
        all.spawn(follower.follow());
        Ok(life)
    }
}

/// Waits until a process is gone.
pub(super) async fn gone(pidfd: OwnedFd) -> Result<(), Error> {
    let failed = || system("following a machine process");
    Process::new(pidfd).map_err(failed())?.gone().await.map_err(failed())
}

struct Follower {
    life: Arc<Life>,
    process: Process,
    control: Control,
    news: broadcast::Sender<News>,
    known: Known,
    /// What happened up to here is no news any more.
    told_until_us: Option<u64>,
    loaded_us: u64,
}

impl Follower {
    async fn follow(mut self) {
        let mut events = None;
        loop {
            tokio::select! {
                biased;
                event = next(&self.control, &mut events, &mut self.told_until_us, self.known, &self.life) => {
                    self.hear(&event);
                }
                ended = self.process.gone() => {
                    if let Err(error) = ended {
                        tracing::error!(instance = %self.life.instance, %error, "waiting for a machine process");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                    break;
                }
            }
        }
        // What it said before it ended is there yet.
        if let Some(mut events) = events {
            while let Ok(Some(event)) = tokio::time::timeout(LAST_WORDS_MAX, events.next()).await {
                self.hear(&event);
            }
        }
        let status = self.process.ending().await.unwrap_or_else(|error| {
            tracing::warn!(instance = %self.life.instance, %error, "waiting for a machine process");
            None
        });
        self.end(status).await;
    }

    fn hear(&mut self, event: &Event) {
        let us = match event {
            Event::Sandboxed { us, .. }
            | Event::Loaded { us, .. }
            | Event::Running { us }
            | Event::Restored { us }
            | Event::Reset { us }
            | Event::Paused { us }
            | Event::Resumed { us }
            | Event::Attached { us, .. }
            | Event::Detached { us, .. }
            | Event::Stuck { us, .. }
            | Event::Recovered { us, .. }
            | Event::WorkingSetRecorded { us, .. }
            | Event::Panicked { us }
            | Event::Ended { us, .. } => *us,
        };
        let is_news = self.told_until_us.is_none_or(|until| us > until);
        match event {
            Event::Loaded { .. } => self.loaded_us = us,
            Event::Running { .. } | Event::Reset { .. } | Event::Panicked { .. } => self.run(us),
            // Only one that runs is paused, or given devices. As to the end: the record says it too, and
            // whether the process is gone is another matter.
            Event::Restored { .. }
            | Event::Paused { .. }
            | Event::Resumed { .. }
            | Event::Attached { .. }
            | Event::Detached { .. }
            | Event::Stuck { .. }
            | Event::Recovered { .. }
            | Event::WorkingSetRecorded { .. }
            | Event::Sandboxed { .. }
            | Event::Ended { .. } => {}
        }
        if is_news {
            self.told_until_us = Some(us);
            match event {
                Event::Reset { .. } => self.tell(NewsKind::Rebooted),
                Event::Panicked { .. } => self.tell(NewsKind::Panicked),
                Event::Stuck { vcpu, rip, .. } => {
                    tracing::warn!(instance = %self.life.instance, vcpu, rip = format!("{rip:#x}"), "a vCPU is stuck");
                }
                Event::Recovered { vcpu, .. } => {
                    tracing::info!(instance = %self.life.instance, vcpu, "a vCPU is no longer stuck");
                }
                Event::Loaded { .. }
                | Event::Running { .. }
                | Event::Restored { .. }
                | Event::Paused { .. }
                | Event::Resumed { .. }
                | Event::Attached { .. }
                | Event::Detached { .. }
                | Event::WorkingSetRecorded { .. }
                | Event::Sandboxed { .. }
                | Event::Ended { .. } => {}
            }
        }
    }

    fn run(&self, us: u64) {
        if self.life.began.set(Began { loaded_us: self.loaded_us, running_us: us }).is_ok() {
            self.life.phase.send_replace(Phase::Running);
        }
    }

    async fn end(self, status: Option<ExitStatus>) {
        let folder = self.life.folder.clone();
        let ending = blocking(move || {
            // Whatever it may have said of itself: what has to be killed by its sandbox is not to be believed.
            let violation = match status {
                Some(status) => violation::failure(folder.pid(), status),
                None => {
                    let own = folder.plan()?.and_then(|plan| plan.id);
                    own.and_then(|own| violation::of_unknown_end(folder.pid(), own))
                }
            };
            match violation {
                Some(failure) => {
                    Ok(Ending::Told { exit: Exit::Failed(failure.kind), failure: Some(failure) })
                }
                None => folder.ending(),
            }
        });
        let ending = ending.await.unwrap_or_else(|error| {
            tracing::warn!(instance = %self.life.instance, %error, "how a machine ended");
            Ending::Silent
        });
        // Who starts a machine learns from that call that it did not run.
        let is_news = self.life.began().is_some() || self.known == Known::Found || has_run(&ending);
        // First: who hears of it may remove what is left at once.
        self.life.phase.send_replace(Phase::Ended(ending.clone()));
        if is_news {
            self.tell(NewsKind::Ended(ending));
        }
    }

    fn tell(&self, kind: NewsKind) {
        let Life { instance, generation, .. } = &*self.life;
        tracing::debug!(%instance, generation, ?kind, "a machine tells");
        // With nobody listening there is nobody to tell.
        let _ = self.news.send(News { instance: instance.clone(), generation: *generation, kind });
    }
}

/// The next event, however often the conversation breaks off. Loses nothing when it is dropped.
async fn next(
    control: &Control,
    events: &mut Option<Events>,
    told_until_us: &mut Option<u64>,
    known: Known,
    life: &Life,
) -> Event {
    loop {
        if let Some(following) = events {
            if let Some(event) = following.next().await {
                return event;
            }
            *events = None;
            tokio::time::sleep(RETRY).await;
        }
        if known == Known::Found && told_until_us.is_none() {
            match control.machine().await {
                Ok(machine) => {
                    if machine.identity.asset_tag.as_deref() != Some(life.instance.as_str()) {
                        let (instance, says) = (&life.instance, machine.identity.asset_tag);
                        tracing::error!(%instance, ?says, "a machine says that it is another");
                    }
                    *told_until_us = Some(machine.uptime_ms.saturating_mul(1000));
                }
                Err(error) => {
                    tracing::debug!(instance = %life.instance, %error, "asking a machine what it is");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        match control.events().await {
            Ok(following) => *events = Some(following),
            Err(error) => {
                tracing::debug!(instance = %life.instance, %error, "following a machine's events");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// A machine that serves its control socket answers; one that does not is asked again.
const RETRY: Duration = Duration::from_millis(200);
/// A process that is gone has said all; what it said is only to be read.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);
