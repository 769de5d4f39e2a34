//! A cloud to test: a simulated host and a store that outlive it, and a clock that can jump.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use ec2vmm_cloud::{
    Clock, Cloud, Config, Error,
    images::RegisterImage,
    instances::{DescribeInstances, Launch, Reservation},
};
use ec2vmm_host::simulated::{Settings, Simulated};
use ec2vmm_model::{
    Instance, InstanceType, Time,
    ids::InstanceId,
    images::DiskFormat,
    ledger::{Charge, Entry},
    lifecycle::State,
    networks::Network,
    tags::Tags,
    volumes::Volume,
};
use ec2vmm_store::{Keys, Store};
use tokio::time::Instant;

/// A clock that follows the runtime's, and can jump.
pub(crate) struct TestClock {
    began: Instant,
    jumped_ms: AtomicI64,
}

impl Clock for TestClock {
    fn now(&self) -> Time {
        let elapsed = i64::try_from(self.began.elapsed().as_millis()).unwrap();
        Time::from_unix_ms(1_795_343_593_000 + elapsed + self.jumped_ms.load(Ordering::Relaxed))
    }
}

impl TestClock {
    pub(crate) fn jump(&self, ms: i64) {
        self.jumped_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

pub(crate) struct World {
    pub(crate) host: Simulated,
    pub(crate) store: Store,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) config: Config,
    pub(crate) cloud: Cloud,
    pub(crate) image: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default(), Settings::default()).await
    }

    pub(crate) async fn with(config: Config, settings: Settings) -> Self {
        let clock = Arc::new(TestClock { began: Instant::now(), jumped_ms: AtomicI64::new(0) });
        let host = Simulated::new(settings);
        let store = Store::in_memory().unwrap();
        let faults = config.faults.clone();
        // Nothing goes wrong before the test begins.
        let config = Config { faults: None, ..config };
        let cloud = start(&store, &host, &clock, &config).await;
        let image = cloud.register_image(image("debian-12")).await.unwrap().id.to_string();
        cloud.shut_down().await;
        let config = Config { faults, ..config };
        let cloud = start(&store, &host, &clock, &config).await;
        Self { host, store, clock, config, cloud, image }
    }

    /// The daemon dies, wherever it is, and another one takes over.
    pub(crate) async fn restart(&mut self) {
        self.cloud.shut_down().await;
        self.cloud = start(&self.store, &self.host, &self.clock, &self.config).await;
    }

    pub(crate) fn one(&self) -> Launch {
        Launch {
            image: self.image.clone(),
            instance_type: "t3.micro".to_owned(),
            min_count: 1,
            max_count: 1,
            ..Launch::default()
        }
    }

    pub(crate) async fn launch_one(&self) -> String {
        let reservation = self.cloud.launch(self.one()).await.unwrap();
        only(&reservation)
    }

    /// One that runs.
    pub(crate) async fn running(&self) -> String {
        let id = self.launch_one().await;
        self.until(&id, State::Running).await;
        id
    }

    pub(crate) async fn state(&self, id: &str) -> State {
        self.cloud.instance(id).await.unwrap().instance.state
    }

    pub(crate) async fn record(&self, id: &str) -> Arc<Instance> {
        self.cloud.instance(id).await.unwrap().instance
    }

    /// Waits for a state, an hour at most.
    pub(crate) async fn until(&self, id: &str, state: State) {
        let begun = Instant::now();
        while self.state(id).await != state {
            assert!(begun.elapsed() < HOUR, "{id} is {}, not {state}", self.state(id).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until nothing is on its way, an hour at most.
    pub(crate) async fn settle(&self) {
        let begun = Instant::now();
        loop {
            let instances = self.instances();
            let passing = instances.iter().any(|instance| instance.state.is_passing());
            if !passing && self.cloud.figures().unwrap().reconcilers == 0 {
                return;
            }
            let states: Vec<_> = instances.iter().map(|it| (it.id.clone(), it.state)).collect();
            assert!(begun.elapsed() < HOUR, "never settles: {states:?}, {:?}", self.host.look());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn instances(&self) -> Vec<Arc<Instance>> {
        self.store.range::<Instance>(&Keys::all()).unwrap().into_iter().map(|it| it.record).collect()
    }

    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.store.range::<Entry>(&Keys::all()).unwrap().into_iter().map(|it| it.record).collect()
    }

    pub(crate) fn id(&self, id: &str) -> InstanceId {
        id.parse().unwrap()
    }

    /// What is on the host is what the records name, nothing is given away twice or to nobody, and the ledger
    /// runs for what runs.
    pub(crate) fn check(&self) {
        let found = self.host.look();
        let instances = self.instances();
        let running: Vec<_> = instances.iter().filter(|it| it.state == State::Running).collect();

        let wanted: Vec<_> = running.iter().map(|it| (it.id.clone(), it.generation, None)).collect();
        let machines: Vec<_> =
            found.machines.iter().map(|it| (it.instance.clone(), it.generation, it.ended.clone())).collect();
        assert_eq!(machines, wanted, "machines");

        let interfaces: BTreeSet<_> = running.iter().map(|it| it.interface.id.clone()).collect();
        assert_eq!(found.interfaces.into_iter().collect::<BTreeSet<_>>(), interfaces, "interfaces");

        let volumes = self.store.range::<Volume>(&Keys::all()).unwrap();
        let files: Vec<_> = volumes.iter().map(|it| it.id.clone()).collect();
        assert_eq!(found.volumes, files, "volumes");
        for volume in volumes.iter().filter_map(|it| it.attachment.clone()) {
            let owner = instances.iter().find(|it| it.id == volume.instance).expect("an owner");
            assert_ne!(owner.state, State::Terminated, "a volume outlives {}", owner.id);
        }

        for console in &found.consoles {
            assert!(instances.iter().any(|it| it.id == *console), "the console of {console} is nobody's");
        }
        let networks: BTreeSet<_> =
            self.store.range::<Network>(&Keys::all()).unwrap().iter().map(|it| it.vpc.clone()).collect();
        assert!(networks.len() == 1 && found.networks.iter().all(|it| networks.contains(it)), "networks");

        let living = instances.iter().filter(|it| it.state != State::Terminated);
        let addresses: Vec<_> = living.map(|it| it.interface.address).collect();
        assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len(), "addresses");

        let figures = self.cloud.figures().unwrap();
        let types: Vec<_> = running.iter().map(|it| InstanceType::find(&it.instance_type).unwrap()).collect();
        assert_eq!(figures.vcpus_given, types.iter().map(|it| u64::from(it.vcpus)).sum::<u64>(), "vCPUs");
        assert_eq!(figures.memory_given_mib, types.iter().map(|it| it.memory_mib).sum::<u64>(), "memory");

        self.check_ledger(&running, &files);
    }

    fn check_ledger(&self, running: &[&Arc<Instance>], volumes: &[ec2vmm_model::ids::VolumeId]) {
        let entries = self.entries();
        assert!(entries.iter().all(|it| it.to.is_none_or(|to| to >= it.from)), "intervals that end before");
        let open = |wanted: fn(&Charge) -> bool| -> BTreeSet<(String, u64)> {
            let open = entries.iter().filter(|it| it.to.is_none() && wanted(&it.charge));
            open.map(|it| (it.resource.clone(), it.serial)).collect()
        };
        let computing = open(|charge| matches!(charge, Charge::Compute { .. }));
        let wanted = running.iter().map(|it| (it.id.to_string(), it.generation)).collect();
        assert_eq!(computing, wanted, "compute in the ledger");
        let storing = open(|charge| matches!(charge, Charge::Volume { .. }));
        let storing: BTreeSet<String> = storing.into_iter().map(|(resource, _)| resource).collect();
        assert_eq!(storing, volumes.iter().map(ToString::to_string).collect(), "volumes in the ledger");
    }
}

pub(crate) async fn start(store: &Store, host: &Simulated, clock: &Arc<TestClock>, config: &Config) -> Cloud {
    let host = Arc::new(host.clone());
    Cloud::start(store.clone(), host, Arc::clone(clock) as Arc<dyn Clock>, config.clone()).await.unwrap()
}

pub(crate) fn image(name: &str) -> RegisterImage {
    RegisterImage {
        name: name.to_owned(),
        description: String::new(),
        file: PathBuf::from(format!("{name}.qcow2")),
        format: DiskFormat::Qcow2,
        login_user: "debian".to_owned(),
        tags: Tags::default(),
        id: None,
    }
}

pub(crate) fn only(reservation: &Reservation) -> String {
    assert_eq!(reservation.instances.len(), 1);
    reservation.instances[0].instance.id.to_string()
}

pub(crate) fn tags(pairs: &[(&str, &str)]) -> Tags {
    Tags(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
}

pub(crate) fn all() -> DescribeInstances {
    DescribeInstances::default()
}

pub(crate) fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

/// An error as clients see it.
pub(crate) fn told<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(error) => format!("{}: {error}", error.code()),
    }
}

pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);
