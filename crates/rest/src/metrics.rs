//! Numbers for Prometheus: of requests and connections as they happen, of the cloud as it is when asked.

use std::{fmt, sync::atomic::AtomicU64, time::Duration};

use axum::http::Method;
use ec2vmm_cloud::Figures;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::routes::About;

/// All that is counted.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    durations: Family<Route, Histogram>,
    under_way: Gauge,
    connections: Gauge,
    connections_refused: Counter,
    instances: Family<State, Gauge>,
    vcpus: Gauge,
    vcpus_given: Gauge,
    memory_bytes: Gauge,
    memory_given_bytes: Gauge,
    reconcilers: Gauge,
    steps_failed: Counter<u64, AtomicU64>,
    operations: Family<Operation, Counter<u64, AtomicU64>>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Request {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Route {
    method: &'static str,
    route: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Operation {
    operation: &'static str,
}

/// Something that counts while it is there.
pub(crate) struct Present(Gauge);

impl Present {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(crate) fn new(about: &About) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("ec2vmm"),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(FIRST_BUCKET_S, 2.0, BUCKETS))
            }),
            under_way: Gauge::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            instances: Family::default(),
            vcpus: Gauge::default(),
            vcpus_given: Gauge::default(),
            memory_bytes: Gauge::default(),
            memory_given_bytes: Gauge::default(),
            reconcilers: Gauge::default(),
            steps_failed: Counter::default(),
            operations: Family::default(),
        };
        metrics.register(about);
        metrics
    }

    fn register(&mut self, about: &About) {
        let build = [("version", about.version.clone()), ("host", about.host.clone())];
        let all = &mut self.registry;
        all.register("build", "The daemon and the host that it works on", Info::new(build));
        all.register("requests", "Requests that were answered", self.requests.clone());
        all.register_with_unit(
            "request_duration",
            "From the request's head to the answer's",
            Unit::Seconds,
            self.durations.clone(),
        );
        all.register("requests_under_way", "Requests that are not answered yet", self.under_way.clone());
        all.register("connections", "Connections that are open", self.connections.clone());
        all.register(
            "connections_refused",
            "Connections that were refused because there were too many",
            self.connections_refused.clone(),
        );
        all.register("instances", "Instances by state", self.instances.clone());
        all.register("vcpus", "Virtual processors that there are to give", self.vcpus.clone());
        all.register("vcpus_given", "Virtual processors that are given", self.vcpus_given.clone());
        all.register_with_unit(
            "memory",
            "Memory that there is to give",
            Unit::Bytes,
            self.memory_bytes.clone(),
        );
        all.register_with_unit(
            "memory_given",
            "Memory that is given",
            Unit::Bytes,
            self.memory_given_bytes.clone(),
        );
        all.register("reconcilers", "Reconcilers at work", self.reconcilers.clone());
        all.register("reconcile_steps_failed", "Reconcile steps that failed", self.steps_failed.clone());
        all.register("operations", "Operations on instances", self.operations.clone());
    }

    /// A request, as long as this is there.
    pub(crate) fn begin(&self) -> Present {
        Present::new(&self.under_way)
    }

    /// A connection, as long as this is there.
    pub(crate) fn connected(&self) -> Present {
        Present::new(&self.connections)
    }

    /// A connection too many.
    pub(crate) fn refused(&self) {
        self.connections_refused.inc();
    }

    /// A request that was answered. `route` is a pattern, never what a client sent.
    pub(crate) fn done(&self, method: &Method, route: &str, status: u16, took: Duration) {
        let method = known(method);
        let route = route.to_owned();
        self.durations.get_or_create(&Route { method, route: route.clone() }).observe(took.as_secs_f64());
        self.requests.get_or_create(&Request { method, route, status }).inc();
    }

    /// All of it, as text.
    pub(crate) fn written(&self, figures: &Figures) -> Result<String, fmt::Error> {
        use std::sync::atomic::Ordering::Relaxed;
        for (state, count) in &figures.instances {
            self.instances.get_or_create(&State { state: state.name() }).set(signed(*count));
        }
        self.vcpus.set(signed(figures.vcpus));
        self.vcpus_given.set(signed(figures.vcpus_given));
        self.memory_bytes.set(signed(figures.memory_mib.saturating_mul(MIB)));
        self.memory_given_bytes.set(signed(figures.memory_given_mib.saturating_mul(MIB)));
        self.reconcilers.set(signed(figures.reconcilers));
        self.steps_failed.inner().store(figures.steps_failed, Relaxed);
        for (operation, count) in &figures.operations {
            self.operations.get_or_create(&Operation { operation }).inner().store(*count, Relaxed);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Clients can make up methods; labels are not theirs to make.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

const MIB: u64 = 1024 * 1024;
/// 100 µs, doubled to 3.3 s.
const FIRST_BUCKET_S: f64 = 0.0001;
const BUCKETS: u16 = 16;
