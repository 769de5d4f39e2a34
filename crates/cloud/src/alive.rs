//! Until when the machines of this host are known to have run: what was lost with the host is charged until
//! then, and not for as long as the host was down.

use std::sync::Arc;

use ec2vmm_model::Time;
use ec2vmm_store::{Expect, Record, Store, Transaction};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::{Error, cloud::Inner};

/// When a machine was last known to run, as the store keeps it: one record.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Alive {
    at: Time,
}

impl Record for Alive {
    const KIND: &'static str = "alive";

    fn key(&self) -> String {
        KEY.to_owned()
    }
}

/// When an earlier daemon last noted so.
pub(crate) fn last(store: &Store) -> Result<Option<Time>, Error> {
    Ok(store.get::<Alive>(KEY)?.map(|alive| alive.at))
}

/// Notes it from time to time, while anything runs.
pub(crate) async fn keep(cloud: Arc<Inner>) {
    let mut ticks = interval(cloud.config.credits_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if cloud.reconcilers.machines_that_run().is_empty() {
            continue;
        }
        let inner = Arc::clone(&cloud);
        let body = move |transaction: &mut Transaction<'_>| {
            Ok(transaction.put(Alive { at: inner.now() }, Expect::Any)?)
        };
        if let Err(error) = cloud.commit(body, |_, ()| {}).await {
            warn!(error = &error as &dyn std::error::Error, "it cannot be noted that machines run");
        }
    }
}

const KEY: &str = "machines";
