//! All routes, and what every handler has at hand.

use std::{path::PathBuf, sync::Arc};

use axum::{Router, middleware};
use ec2vmm_cloud::{Clock, Cloud};
use ec2vmm_model::Time;
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    backup, console, cost, ending::Ending, events, images, instance_types, instances, key_pairs,
    metrics::Metrics, status, tags, trace::trace, usage, volumes,
};

/// What every handler has at hand. Copies are the same.
#[derive(Clone)]
pub struct Rest {
    pub(crate) cloud: Cloud,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) about: Arc<About>,
    pub(crate) metrics: Arc<Metrics>,
    /// A folder for copies that are sent and removed.
    pub(crate) scratch: Arc<PathBuf>,
    /// Room for requests at work: those beyond wait their turn.
    pub(crate) under_way: Arc<Semaphore>,
    /// Streams end then.
    pub(crate) ending: Ending,
}

/// What the daemon says of itself.
#[derive(Clone, Debug)]
pub struct About {
    /// Its version.
    pub version: String,
    /// The host it works on: `linux`, `simulated`.
    pub host: String,
    /// When it started.
    pub started: Time,
}

impl Rest {
    /// Everything that can be asked. Copies of the database are made in `scratch`, and streams end with
    /// `ending`.
    pub fn new(cloud: Cloud, clock: Arc<dyn Clock>, about: About, scratch: PathBuf, ending: Ending) -> Self {
        let metrics = Arc::new(Metrics::new(&about));
        Self {
            cloud,
            clock,
            about: Arc::new(about),
            metrics,
            scratch: Arc::new(scratch),
            under_way: Arc::new(Semaphore::new(REQUESTS_MAX as usize)),
            ending,
        }
    }

    pub(crate) fn router(self) -> Router {
        let (router, _) = routes().split_for_parts();
        router.with_state(self.clone()).layer(middleware::from_fn_with_state(self, trace))
    }
}

/// Every route, with its description.
pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new()
        .merge(instances::routes())
        .merge(console::routes())
        .merge(images::routes())
        .merge(instance_types::routes())
        .merge(key_pairs::routes())
        .merge(volumes::routes())
        .merge(tags::routes())
        .merge(cost::routes())
        .merge(usage::routes())
        .merge(events::routes())
        .merge(backup::routes())
        .merge(status::routes())
}

/// Requests at work at one time.
pub(crate) const REQUESTS_MAX: u32 = 256;
