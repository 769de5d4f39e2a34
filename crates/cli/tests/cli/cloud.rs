//! The daemon's own server, store and cloud, over a simulated host that outlives them.

use std::{
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Arc,
};

use ec2vmm_cloud::{Clock, Cloud, Config, SystemClock};
use ec2vmm_host::simulated::{Settings, Simulated};
use ec2vmm_rest::{About, End, Limits, Rest, Server};
use ec2vmm_store::Store;
use tokio::{runtime::Runtime, task::JoinHandle};

/// A daemon, in this program.
pub(crate) struct RealDaemon {
    runtime: Runtime,
    cloud: Cloud,
    end: End,
    serving: JoinHandle<()>,
    socket: PathBuf,
}

/// A host for it.
pub(crate) fn simulated() -> Simulated {
    Simulated::new(Settings::default())
}

impl RealDaemon {
    /// One with its database and its socket in this folder.
    pub(crate) fn start(folder: &Path, host: &Simulated) -> Self {
        let runtime = Runtime::new().unwrap();
        let socket = folder.join("daemon.sock");
        let (cloud, end, serving) = runtime.block_on(async {
            let store = Store::open(&folder.join("ec2vmm.db")).unwrap();
            let clock: Arc<dyn Clock> = Arc::new(SystemClock);
            let started = clock.now();
            let host = Arc::new(host.clone());
            let cloud = Cloud::start(store, host, Arc::clone(&clock), Config::default()).await.unwrap();
            let about = About { version: "0.1.0".to_owned(), host: "simulated".to_owned(), started };
            let (end, ending) = End::new();
            let rest = Rest::new(cloud.clone(), clock, about, folder.to_owned(), ending);
            let listener = UnixListener::bind(&socket).unwrap();
            let server = Server::new(listener, rest, Limits::default()).unwrap();
            (cloud, end, tokio::spawn(server.serve()))
        });
        Self { runtime, cloud, end, serving, socket }
    }

    /// Ends it, as an upgrade does.
    pub(crate) fn stop(self) {
        let Self { runtime, cloud, end, serving, socket } = self;
        std::fs::remove_file(socket).unwrap();
        end.come();
        runtime.block_on(async {
            serving.await.unwrap();
            cloud.shut_down().await;
        });
    }
}
