//! A cloud: its records, its host, and the tasks that keep the two in step.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ec2vmm_host::host::Host;
use ec2vmm_model::{Instance, Time, lifecycle::State, networks::Network};
use ec2vmm_store::{BackupError, Keys, Store, Transaction};
use tokio::sync::{oneshot, watch};
use tracing::{Instrument, warn};

use crate::{
    Clock, Config, Error, admission::Admission, adopt, alive, credits, events::Log, network, news,
    reconcile::Reconcilers, sweep, tasks::Tasks, types,
};

/// A cloud. Copies are the same cloud.
#[derive(Clone)]
pub struct Cloud {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: Config,
    pub(crate) network: Network,
    pub(crate) admission: Admission,
    pub(crate) reconcilers: Reconcilers,
    pub(crate) log: Log,
    /// When an earlier daemon last knew machines to run.
    pub(crate) last_alive: Option<Time>,
    pub(crate) counts: Counts,
    pub(crate) tasks: Tasks,
    /// Says that the cloud is shut down.
    pub(crate) over: watch::Sender<bool>,
}

impl Cloud {
    /// Takes over what is there: adopts the machines that run, goes on with what was begun, and removes
    /// what belongs to nobody. Call it on a Tokio runtime; [`Self::shut_down`] ends it.
    ///
    /// # Errors
    /// The store or the host cannot be read.
    pub async fn start(
        store: Store,
        host: Arc<dyn Host>,
        clock: Arc<dyn Clock>,
        config: Config,
    ) -> Result<Self, Error> {
        config.check()?;
        let (opened, now) = (store.clone(), clock.now());
        let (base, prefix) = (config.network_base, config.network_prefix);
        let begin =
            move || Ok((network::ensure(&opened, base, prefix)?, Log::open(&opened)?, alive::last(&opened)?));
        let (network, log, last_alive) = blocking(begin).await?;
        let admission =
            Admission::new(host.capacity(), config.cpu_overcommit, config.memory_overcommit, &network);
        let inner = Arc::new(Inner {
            store,
            host,
            clock,
            config,
            network,
            admission,
            reconcilers: Reconcilers::default(),
            log,
            last_alive,
            counts: Counts::default(),
            tasks: Tasks::new(),
            over: watch::Sender::new(false),
        });
        // Before the first look, so that nothing is missed between the two.
        let told = inner.host.news();
        adopt::take_over(&inner, now).await?;
        inner.tasks.spawn(news::follow(Arc::clone(&inner), told));
        inner.tasks.spawn(credits::keep(Arc::clone(&inner)));
        inner.tasks.spawn(sweep::keep(Arc::clone(&inner)));
        inner.tasks.spawn(alive::keep(Arc::clone(&inner)));
        Ok(Self { inner })
    }

    /// Ends all tasks and refuses all changes from now on. Machines run on.
    pub async fn shut_down(&self) {
        self.inner.over.send_replace(true);
        self.inner.tasks.shut_down().await;
    }

    /// How it is configured.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The default network.
    pub fn network(&self) -> &Network {
        &self.inner.network
    }

    /// Numbers for `/metrics`: instances by state, what is given away and what there is.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn figures(&self) -> Result<Figures, Error> {
        let mut instances = State::ALL.map(|state| (state, 0));
        for instance in self.inner.store.range::<Instance>(&Keys::all())? {
            for (state, count) in &mut instances {
                *count += u64::from(*state == instance.state);
            }
        }
        let (given, limit) = self.inner.admission.figures();
        Ok(Figures {
            instances: instances.into(),
            vcpus_given: given.vcpus,
            vcpus: limit.vcpus,
            memory_given_mib: given.memory_mib,
            memory_mib: limit.memory_mib,
            reconcilers: self.inner.reconcilers.at_work(),
            steps_failed: self.inner.counts.steps_failed.load(Ordering::Relaxed),
            operations: self.inner.counts.operations(),
        })
    }

    /// Copies the database while it is in use, to a file that must not be there.
    ///
    /// # Errors
    /// The file is there, or cannot be written.
    pub async fn backup(&self, file: PathBuf) -> Result<(), BackupError> {
        let store = self.inner.store.clone();
        match tokio::task::spawn_blocking(move || store.backup(&file)).await {
            Ok(result) => result,
            Err(_) => Err(BackupError::Closed),
        }
    }
}

impl Inner {
    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    /// Runs a transaction to its end, also where nobody waits for it any more, and then `done`: what is
    /// recorded is acted upon.
    pub(crate) async fn commit<T: Send + 'static>(
        self: &Arc<Self>,
        body: impl FnMut(&mut Transaction<'_>) -> Result<T, Error> + Send + 'static,
        done: impl FnOnce(&Arc<Self>, &T) + Send + 'static,
    ) -> Result<T, Error> {
        let (tell, told) = oneshot::channel();
        let inner = Arc::clone(self);
        let task = async move {
            let result = inner.transact(body).await;
            if let Ok(value) = &result {
                done(&inner, value);
            }
            // Whoever asked may be gone.
            let _ = tell.send(result);
        };
        self.tasks.spawn(task.in_current_span());
        told.await.unwrap_or(Err(Error::Unavailable))
    }

    async fn transact<T: Send + 'static>(
        &self,
        mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if let Some(faults) = &self.config.faults {
            faults.before_commit().await?;
        }
        let Ok(permit) = self.tasks.commits().acquire_owned().await else { return Err(Error::Unavailable) };
        let store = self.store.clone();
        let result = blocking(move || {
            let result = store.transact(&mut body);
            // Who has all permits knows that nobody has the store any more.
            drop((body, store));
            drop(permit);
            result
        })
        .await;
        if let Some(faults) = &self.config.faults {
            faults.after_commit().await;
        }
        if let Err(Error::Store(error)) = &result {
            warn!(error = error as &dyn std::error::Error, "a transaction failed");
        }
        result
    }

    /// What a record's change means for what is given away.
    pub(crate) fn follow(&self, instance: &Instance) {
        let size = types::find(&instance.instance_type).map(Into::into).unwrap_or_default();
        self.admission.follow(instance, size);
    }
}

/// Does what may block where that is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Unavailable),
    }
}

/// How much there is of everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Instances by state, terminated ones that are still shown among them.
    pub instances: Vec<(State, u64)>,
    /// vCPUs that are given away.
    pub vcpus_given: u64,
    /// vCPUs that there are to give, overcommitted.
    pub vcpus: u64,
    /// Memory that is given away, MiB.
    pub memory_given_mib: u64,
    /// Memory that there is to give, MiB.
    pub memory_mib: u64,
    /// Reconcilers at work.
    pub reconcilers: u64,
    /// Steps that failed since the daemon's start.
    pub steps_failed: u64,
    /// Instances that were launched, started, stopped, rebooted and terminated by request since the daemon's
    /// start.
    pub operations: Vec<(&'static str, u64)>,
}

/// What is counted since the start.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) launched: AtomicU64,
    pub(crate) started: AtomicU64,
    pub(crate) stopped: AtomicU64,
    pub(crate) rebooted: AtomicU64,
    pub(crate) terminated: AtomicU64,
    pub(crate) steps_failed: AtomicU64,
}

impl Counts {
    fn operations(&self) -> Vec<(&'static str, u64)> {
        let Self { launched, started, stopped, rebooted, terminated, steps_failed: _ } = self;
        [
            ("launch", launched),
            ("start", started),
            ("stop", stopped),
            ("reboot", rebooted),
            ("terminate", terminated),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
        .into()
    }
}
