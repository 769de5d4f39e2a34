//! CPU credits of burstable instances: counted from time to time, and acted upon.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ec2vmm_host::host::Host;
use ec2vmm_model::{
    Instance, Time,
    credits::{Account, Burstable, Throttle},
    ids::InstanceId,
    instances::CreditMode,
    lifecycle::State,
};
use ec2vmm_store::{Expect, Keys, Store, Transaction};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, warn};

use crate::{Cloud, Error, cloud::Inner, events, instances, record};

/// CPU credits of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceCredits {
    /// Whose.
    pub instance: InstanceId,
    /// How they are counted.
    pub mode: CreditMode,
    /// `CPUCreditBalance`, thousandths of a credit. A credit is one vCPU for a minute.
    pub balance_milli: u64,
    /// `CPUSurplusCreditBalance`, thousandths of a credit: taken, not yet earned.
    pub surplus_milli: u64,
    /// Thousandths of a credit that this run is charged for.
    pub charged_milli: u64,
}

impl Cloud {
    /// CPU credits of these instances, or of all: of burstable types only, unless another one is named,
    /// which is an error.
    ///
    /// # Errors
    /// An id that makes no sense or is nobody's; a type that has no credits.
    pub async fn describe_credits(&self, ids: &[String]) -> Result<Vec<InstanceCredits>, Error> {
        let store = &self.inner.store;
        if ids.is_empty() {
            let all = store.range::<Instance>(&Keys::all())?;
            let shown = all.iter().filter(|instance| instance.state != State::Terminated);
            return shown.filter_map(|instance| credits_of(store, instance).transpose()).collect();
        }
        let found = instances::find_all(store, ids)?;
        let credits = found.iter().map(|instance| {
            credits_of(store, instance)?.ok_or_else(|| Error::Unsupported {
                message: format!(
                    "The instance '{}' of type {} does not have CPU credits.",
                    instance.id, instance.instance_type
                ),
            })
        });
        credits.collect()
    }
}

fn credits_of(store: &Store, instance: &Instance) -> Result<Option<InstanceCredits>, Error> {
    let Some(kind) = Burstable::find(&instance.instance_type) else { return Ok(None) };
    let account = store.get::<Account>(instance.id.as_str())?;
    let credits = account.map(|account| account.credits).unwrap_or_default();
    Ok(Some(InstanceCredits {
        instance: instance.id.clone(),
        mode: instance.credit_mode.unwrap_or(kind.default_mode),
        balance_milli: credits.balance_millicredits(),
        surplus_milli: credits.surplus_millicredits(),
        charged_milli: credits.charged_us / (ec2vmm_model::credits::CREDIT_US / 1_000),
    }))
}

/// What a machine may use from its first moment.
pub(crate) fn at_start(
    store: &Store,
    instance: &Instance,
    now: Time,
    every: Duration,
) -> Result<Throttle, Error> {
    let account = store.get::<Account>(instance.id.as_str())?.map(|account| (*account.record).clone());
    let account = account.or_else(|| Account::open(instance, now));
    Ok(account.map_or(Throttle::Full, |mut account| account.count(instance, 0, now, millis(every))))
}

/// A run begins.
pub(crate) fn open(
    transaction: &mut Transaction<'_>,
    instance: &Instance,
    now: Time,
    every: Duration,
) -> Result<(), Error> {
    let present = transaction.get::<Account>(instance.id.as_str())?;
    let present = present.map(|account| (*account.record).clone());
    if let Some(mut account) = present.or_else(|| Account::open(instance, now)) {
        account.count(instance, 0, now, millis(every));
        transaction.put(account, Expect::Any)?;
    }
    Ok(())
}

/// Counts from time to time.
pub(crate) async fn keep(cloud: Arc<Inner>) {
    let mut ticks = interval(cloud.config.credits_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut applied = HashMap::new();
    loop {
        ticks.tick().await;
        if let Err(error) = count(&cloud, &mut applied).await {
            warn!(error = &error as &dyn std::error::Error, "CPU credits could not be counted");
        }
    }
}

/// What a machine has used.
struct Sample {
    instance: InstanceId,
    generation: u64,
    cpu_us: u64,
}

async fn count(cloud: &Arc<Inner>, applied: &mut HashMap<InstanceId, (u64, Throttle)>) -> Result<(), Error> {
    let instances = cloud.store.range::<Instance>(&Keys::all())?;
    let running = instances.iter().filter(|instance| {
        instance.state == State::Running && Burstable::find(&instance.instance_type).is_some()
    });
    let mut samples = Vec::new();
    let mut asked = JoinSet::new();
    for instance in running {
        // A machine that does not answer holds up few others, and not for each of its kind.
        if asked.len() >= ASKED_AT_ONCE {
            samples.extend(asked.join_next().await.and_then(Result::ok).flatten());
        }
        asked.spawn(sample(Arc::clone(&cloud.host), instance.id.clone(), instance.generation));
    }
    while let Some(sample) = asked.join_next().await {
        samples.extend(sample.ok().flatten());
    }
    let present: HashSet<&InstanceId> = samples.iter().map(|sample| &sample.instance).collect();
    applied.retain(|id, _| present.contains(id));
    let every = millis(cloud.config.credits_every);
    while !samples.is_empty() {
        let some: Vec<Sample> = samples.drain(..samples.len().min(ACCOUNTS_AT_ONCE)).collect();
        let inner = Arc::clone(cloud);
        let body = move |transaction: &mut Transaction<'_>| {
            let now = inner.now();
            let throttles = some.iter().map(|sample| advance(transaction, sample, now, every));
            throttles.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()
        };
        for (id, generation, throttle) in cloud.commit(body, |_, _| {}).await? {
            apply(cloud, applied, id, generation, throttle).await;
        }
    }
    Ok(())
}

async fn sample(host: Arc<dyn Host>, instance: InstanceId, generation: u64) -> Option<Sample> {
    match host.usage(&instance).await {
        Ok(usage) => Some(Sample { instance, generation, cpu_us: usage.cpu_us }),
        // It ends just now, or it will be looked at again.
        Err(error) => {
            debug!(%instance, %error, "no usage");
            None
        }
    }
}

fn advance(
    transaction: &mut Transaction<'_>,
    sample: &Sample,
    now: Time,
    every: u64,
) -> Result<Option<(InstanceId, u64, Throttle)>, Error> {
    let id = sample.instance.as_str();
    let instance = transaction.get::<Instance>(id)?;
    let instance = instance.filter(|it| it.state == State::Running && it.generation == sample.generation);
    let Some(instance) = instance else { return Ok(None) };
    let account = transaction.get::<Account>(id)?.map(|account| (*account.record).clone());
    let Some(mut account) = account.or_else(|| Account::open(&instance, now)) else { return Ok(None) };
    let throttle = account.count(&instance, sample.cpu_us, now, every);
    record::put_surplus(transaction, &instance, &account)?;
    transaction.put(account, Expect::Any)?;
    Ok(Some((sample.instance.clone(), sample.generation, throttle)))
}

async fn apply(
    cloud: &Arc<Inner>,
    applied: &mut HashMap<InstanceId, (u64, Throttle)>,
    id: InstanceId,
    generation: u64,
    throttle: Throttle,
) {
    let before = applied.get(&id).filter(|(run, _)| *run == generation).map(|(_, throttle)| *throttle);
    if before == Some(throttle) {
        return;
    }
    if let Err(error) = cloud.host.throttle(&id, throttle).await {
        warn!(instance = %id, error = &error as &dyn std::error::Error, "cannot be throttled");
        return;
    }
    // The limit of a standard instance comes down step by step: only its begin and its end are told.
    let (was_full, is_full) = (before.is_none_or(|it| it == Throttle::Full), throttle == Throttle::Full);
    if was_full != is_full {
        let message = match throttle {
            Throttle::Full => "the processor time is not limited any more".to_owned(),
            Throttle::Limited { millicpus } => {
                format!("CPU credits are nearly spent: limited to {millicpus} thousandths of a processor")
            }
        };
        let kind = events::EventKind::Throttled;
        cloud.log(events::Entry { instance: Some(id.clone()), kind, message });
    }
    applied.insert(id, (generation, throttle));
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Machines that are asked at one time.
const ASKED_AT_ONCE: usize = 32;
/// Accounts that are written in one transaction.
const ACCOUNTS_AT_ONCE: usize = 500;
