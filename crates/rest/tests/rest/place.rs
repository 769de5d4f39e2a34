//! A cloud on a simulated host, served on a socket in a folder of its own.

use std::{os::unix::net::UnixListener, path::PathBuf, sync::Arc, time::Duration};

use ec2vmm_cloud::{Clock, Cloud, Config, SystemClock};
use ec2vmm_host::simulated::{Settings, Simulated};
use ec2vmm_rest::{About, End, Limits, Rest, Server};
use ec2vmm_store::Store;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::client::{Answer, raw, request};

pub(crate) struct Place {
    pub(crate) socket: PathBuf,
    pub(crate) host: Simulated,
    pub(crate) cloud: Cloud,
    pub(crate) end: End,
    pub(crate) server: JoinHandle<()>,
    pub(crate) folder: TempDir,
}

impl Place {
    pub(crate) async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let host = Simulated::new(Settings {
            start_takes: Duration::from_millis(1),
            power_off_takes: Duration::from_millis(1),
            ..Settings::default()
        });
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = Store::open(&folder.path().join("ec2vmm.db")).unwrap();
        let config = Config { cpu_overcommit: 64.0, ..Config::default() };
        let cloud = Cloud::start(store, Arc::new(host.clone()), Arc::clone(&clock), config).await.unwrap();
        let about = About { version: "0".to_owned(), host: "simulated".to_owned(), started: clock.now() };
        let (end, ending) = End::new();
        let rest = Rest::new(cloud.clone(), clock, about, folder.path().to_owned(), ending);
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(Server::new(listener, rest, limits).unwrap().serve());
        Self { socket, host, cloud, end, server, folder }
    }

    /// With an image, a key pair and one instance that runs: its id.
    pub(crate) async fn furnished() -> (Self, String) {
        let place = Self::new().await;
        place.register("minimal").await;
        place.post("/v1/key-pairs", &json!({"name": "my-key", "kind": "ed25519"})).await.expect(201);
        let launch = json!({"image": "minimal", "instance_type": "t3.micro", "key_name": "my-key"});
        let launched = place.post("/v1/instances", &launch).await.expect(201);
        let id = launched["instances"][0]["instance_id"].as_str().unwrap().to_owned();
        place.until(&id, "running").await;
        (place, id)
    }

    pub(crate) async fn register(&self, name: &str) -> Value {
        let image = json!({"name": name, "file": "disk.raw", "format": "raw", "login_user": "root"});
        self.post("/v1/images", &image).await.expect(201)
    }

    /// Waits until an instance is in this state, and shows it.
    pub(crate) async fn until(&self, id: &str, state: &str) -> Value {
        let wait = async {
            let mut events = self.cloud.follow_events(None).unwrap();
            loop {
                let instance = self.get(&format!("/v1/instances/{id}")).await.expect(200);
                if instance["state"] == state {
                    return instance;
                }
                events.next().await.expect("an event");
            }
        };
        let waited = tokio::time::timeout(DEADLINE, wait).await;
        waited.unwrap_or_else(|_| panic!("{id} never came to be {state}"))
    }

    /// Waits until a metric has this value.
    pub(crate) async fn wait_for_metric(&self, name: &str, value: u64) {
        let line = format!("{name} {value}");
        let wait = async {
            loop {
                let text = String::from_utf8(self.get("/metrics").await.body).unwrap();
                if text.lines().any(|known| known == line) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, wait).await;
        waited.unwrap_or_else(|_| panic!("{name} never came to be {value}"));
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[JSON], &body.to_string()).await
    }

    /// A request that says it all by its path.
    pub(crate) async fn act(&self, method: &str, path: &str) -> Answer {
        self.ask(method, path, &[], "").await
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let request = request(method, path, headers, body);
        tokio::time::timeout(DEADLINE, raw(&self.socket, &request)).await.expect("an answer")
    }
}

pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");
/// For hangs, not for slowness.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Well-formed, and nobody's.
pub(crate) const UNKNOWN: &str = "i-00000000000000000";
