//! The daemon dies anywhere: at every call to the host, before and after it, at every commit, before and
//! after it. After each death another daemon takes over, and in the end everything that was promised is so,
//! nothing leaks, nothing is lost.
//!
//! `EC2VMM_CRASH_CASES` says how many sequences are tried, `EC2VMM_CRASH_SEED` which is the first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use ec2vmm_cloud::{
    Config, Error,
    config::Faults,
    instances::{Launch, RootVolume},
};
use ec2vmm_host::simulated::{Settings, When};
use ec2vmm_model::{
    instances::{GuestShutdown, Protection},
    lifecycle::State,
};
use ec2vmm_store::Store;
use tokio::sync::watch;

use crate::world::{World, ids};

/// Whatever happens, in the order in which a random number says.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Launch { count: u32, terminates: bool, keeps_volume: bool },
    Start,
    Stop { force: bool },
    Reboot,
    Terminate,
    GuestPowersOff,
    MachineIsKilled,
    GuestIsDeaf,
    Wait { ms: u64 },
    ClockJumps { ms: i64 },
}

/// Where the daemon dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    AtCall { nth: u64, when: When },
    AtCommit { nth: i64, when: When },
    After { ms: u64 },
}

/// What the instance may be in the end.
type Promised = BTreeSet<State>;

#[test]
fn a_daemon_that_dies_anywhere_keeps_its_promises() {
    let setting = |name: &str, default: u64| std::env::var(name).map_or(default, |it| it.parse().unwrap());
    let (cases, first) = (setting("EC2VMM_CRASH_CASES", 200), setting("EC2VMM_CRASH_SEED", 1));
    let deaths = AtomicU64::new(0);
    for seed in first..first + cases {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(Case::new(seed).run(&deaths));
        }));
        if let Err(panic) = result {
            eprintln!("failed with EC2VMM_CRASH_SEED={seed} EC2VMM_CRASH_CASES=1");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{cases} sequences, {} deaths", deaths.load(Ordering::Relaxed));
    assert!(cases < 100 || deaths.load(Ordering::Relaxed) > cases);
}

struct Case {
    random: Random,
    promised: BTreeMap<String, Promised>,
    /// The instances in the order of their launches: ids are random.
    known: Vec<String>,
    tokens: u64,
    trace: bool,
}

impl Case {
    fn new(seed: u64) -> Self {
        let trace = std::env::var_os("EC2VMM_CRASH_TRACE").is_some();
        Self {
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            promised: BTreeMap::new(),
            known: Vec::new(),
            tokens: 0,
            trace,
        }
    }

    async fn run(mut self, deaths: &AtomicU64) {
        let faults = Arc::new(CommitFaults::default());
        let config = Config {
            faults: Some(Arc::clone(&faults) as Arc<dyn Faults>),
            restart_on_boot: self.random.below(2) == 0,
            stop_grace: Duration::from_secs(5),
            ..Config::default()
        };
        let mut world = World::with(config, Settings::default()).await;
        // One of ten keeps its records in a file, which is read again.
        let folder = (self.random.below(10) == 0).then(|| tempfile::tempdir().unwrap());
        if let Some(folder) = &folder {
            let file = folder.path().join("records.db");
            world.cloud.backup(file.clone()).await.unwrap();
            world = self.reopen(world, &file).await;
        }
        for _ in 0..self.random.between(3, 12) {
            let death = self.death();
            let told = match death {
                Death::AtCall { nth, when } => Some(world.host.last_call(nth, when)),
                Death::AtCommit { nth, when } => Some(faults.die_at(nth, when)),
                Death::After { .. } => None,
            };
            if self.trace {
                eprintln!("{death:?}");
            }
            let deeds: Vec<Deed> = (0..self.random.between(1, 4)).map(|_| self.deed()).collect();
            let unanswered = self.live(&world, told, death, &deeds).await;
            deaths.fetch_add(1, Ordering::Relaxed);
            world.cloud.shut_down().await;
            // Only now is it decided whether it came to pass.
            if let Some(asked) = unanswered {
                self.promise(&world, asked, false);
            }
            world.host.all_well();
            faults.all_well();
            self.while_nobody_watches(&world);
            match &folder {
                Some(folder) => world = self.reopen(world, &folder.path().join("records.db")).await,
                None => world.restart().await,
            }
        }
        world.settle().await;
        world.check();
        self.check(&world).await;
        self.end(&world).await;
    }

    /// Does one thing after another, until the daemon dies or nothing is left to do. Gives what was not
    /// answered.
    async fn live(
        &mut self,
        world: &World,
        told: Option<watch::Receiver<bool>>,
        death: Death,
        deeds: &[Deed],
    ) -> Option<Asked> {
        let mut died = Box::pin(async move {
            match (told, death) {
                (Some(mut told), _) => {
                    let _ = told.wait_for(|died| *died).await;
                }
                (None, Death::After { ms }) => tokio::time::sleep(Duration::from_millis(ms)).await,
                (None, _) => {}
            }
        });
        for deed in deeds {
            if self.trace {
                eprintln!("  {deed:?}");
            }
            let mut asked = Asked::default();
            let answered = tokio::select! {
                biased;
                () = &mut died => false,
                () = self.random.clone().act(world, *deed, &self.known, &mut asked, &mut self.tokens) => true,
            };
            self.random.next();
            if self.trace {
                eprintln!("    answered {answered}: {asked:?}");
            }
            if !answered {
                return Some(asked);
            }
            self.promise(world, asked, true);
        }
        // What was begun goes on for a while, and may be the place to die.
        tokio::select! {
            () = &mut died => {}
            () = tokio::time::sleep(Duration::from_secs(self.random.below(20))) => {}
        }
        None
    }

    /// Takes in what was answered; what was not answered may be so or not.
    fn promise(&mut self, world: &World, asked: Asked, answered: bool) {
        for (id, may_become) in asked.may_become {
            let promised = self.promised.entry(id).or_default();
            if answered && asked.is_sure {
                promised.clear();
            }
            promised.extend(may_become);
        }
        // A launch that was not answered: all of it is there, or nothing.
        if let Some((token, count)) = asked.launch {
            let mut launched: Vec<_> = world
                .instances()
                .into_iter()
                .filter(|it| it.client_token.as_deref() == Some(&token))
                .collect();
            assert!(launched.is_empty() || launched.len() == count, "half of a launch");
            assert!(!answered || launched.len() == count);
            launched.sort_by_key(|it| it.launch_index);
            for instance in launched {
                self.known.push(instance.id.to_string());
                self.promised.entry(instance.id.to_string()).or_default().insert(State::Running);
            }
        }
    }

    /// Machines go on while no daemon is there, and so does the world.
    fn while_nobody_watches(&mut self, world: &World) {
        match self.random.below(8) {
            0 => {
                world.host.reboot();
                for promised in self.promised.values_mut().filter(|it| it.contains(&State::Running)) {
                    promised.insert(State::Stopped);
                }
            }
            1 => {
                if let Some(id) = self.random.pick(&self.known) {
                    self.after_guest(world, &id);
                    world.host.guest_powers_off(&world.id(&id));
                }
            }
            2 => {
                if let Some(id) = self.random.pick(&self.known) {
                    self.promised.entry(id.clone()).or_default().insert(State::Stopped);
                    world.host.machine_is_killed(&world.id(&id));
                }
            }
            3 => world.clock.jump(self.random.jump_ms()),
            _ => {}
        }
    }

    fn after_guest(&mut self, world: &World, id: &str) {
        let record = world.instances().into_iter().find(|it| it.id.as_str() == id);
        let promised = self.promised.entry(id.to_owned()).or_default();
        if promised.contains(&State::Running) {
            promised.insert(State::Stopped);
            if record.is_some_and(|it| it.protection.on_guest_shutdown == GuestShutdown::Terminate) {
                promised.insert(State::Terminated);
            }
        }
    }

    async fn check(&self, world: &World) {
        for (id, promised) in &self.promised {
            let found = world.instances().into_iter().find(|it| it.id.as_str() == id.as_str());
            // Forgotten after an hour: a clock may have jumped that far.
            let state = found.map_or(State::Terminated, |it| it.state);
            let may = promised.iter().copied().collect::<BTreeSet<_>>();
            assert!(may.contains(&state), "{id} is {state}, promised was {may:?}");
        }
        let known: BTreeSet<String> = self.promised.keys().cloned().collect();
        for instance in world.instances() {
            assert!(known.contains(instance.id.as_str()), "{} was never asked for", instance.id);
        }
        let events = world.cloud.describe_events(&Default::default()).await.unwrap();
        assert!(events.is_sorted_by(|one, other| one.sequence < other.sequence));
    }

    /// Everything can still be ended, and then nothing is left at all.
    async fn end(&self, world: &World) {
        let living: Vec<String> = world
            .instances()
            .iter()
            .filter(|it| it.state != State::Terminated)
            .map(|it| it.id.to_string())
            .collect();
        if !living.is_empty() {
            world.cloud.terminate_instances(&living).await.unwrap();
        }
        world.settle().await;
        let volumes = world.cloud.describe_volumes(&Default::default()).await.unwrap();
        for volume in volumes.items {
            world.cloud.delete_volume(volume.id.as_str()).await.unwrap();
        }
        world.check();
        let found = world.host.look();
        assert!(found.machines.is_empty() && found.volumes.is_empty() && found.interfaces.is_empty());
        assert!(world.entries().iter().all(|entry| entry.to.is_some()));
        // Times in the future are mended first.
        tokio::time::sleep(2 * world.config.sweep_every).await;
        world.clock.jump(3 * 60 * 60 * 1000);
        tokio::time::sleep(2 * world.config.sweep_every).await;
        world.settle().await;
        assert!(world.instances().is_empty() && world.host.look().consoles.is_empty());
        world.cloud.shut_down().await;
    }

    async fn reopen(&self, world: World, file: &std::path::Path) -> World {
        let World { host, store, clock, config, cloud, image } = world;
        cloud.shut_down().await;
        drop((cloud, store));
        // Fails where somebody still has the file.
        let store = Store::open(file).unwrap();
        let cloud = crate::world::start(&store, &host, &clock, &config).await;
        World { host, store, clock, config, cloud, image }
    }

    fn death(&mut self) -> Death {
        let when = if self.random.below(2) == 0 { When::Before } else { When::After };
        match self.random.below(10) {
            0..=4 => Death::AtCall { nth: self.random.below(14), when },
            5..=8 => Death::AtCommit { nth: self.random.below(10) as i64, when },
            _ => Death::After { ms: self.random.below(400) },
        }
    }

    fn deed(&mut self) -> Deed {
        match self.random.below(20) {
            0..=4 => Deed::Launch {
                count: 1 + self.random.below(3) as u32,
                terminates: self.random.below(3) == 0,
                keeps_volume: self.random.below(4) == 0,
            },
            5..=7 => Deed::Start,
            8..=10 => Deed::Stop { force: self.random.below(3) == 0 },
            11 | 12 => Deed::Reboot,
            13 | 14 => Deed::Terminate,
            15 => Deed::GuestPowersOff,
            16 => Deed::MachineIsKilled,
            17 => Deed::GuestIsDeaf,
            18 => Deed::Wait { ms: self.random.below(2_000) },
            _ => Deed::ClockJumps { ms: self.random.jump_ms() },
        }
    }
}

/// What was asked for, noted before the answer is there.
#[derive(Debug, Default)]
struct Asked {
    may_become: Vec<(String, Vec<State>)>,
    /// An answer leaves nothing open.
    is_sure: bool,
    launch: Option<(String, usize)>,
}

#[derive(Clone)]
struct Random(u64);

impl Random {
    async fn act(mut self, world: &World, deed: Deed, known: &[String], asked: &mut Asked, tokens: &mut u64) {
        if let Deed::Launch { count, terminates, keeps_volume } = deed {
            *tokens += 1;
            let token = format!("token-{tokens}");
            asked.launch = Some((token.clone(), count as usize));
            let on_guest_shutdown = if terminates { GuestShutdown::Terminate } else { GuestShutdown::Stop };
            let launch = Launch {
                min_count: count,
                max_count: count,
                client_token: Some(token),
                protection: Protection { on_guest_shutdown, ..Protection::default() },
                root: RootVolume { delete_on_termination: !keeps_volume, ..RootVolume::default() },
                ..world.one()
            };
            world.cloud.launch(launch).await.unwrap();
            return;
        }
        match deed {
            Deed::Wait { ms } => return tokio::time::sleep(Duration::from_millis(ms)).await,
            Deed::ClockJumps { ms } => return world.clock.jump(ms),
            _ => {}
        }
        let Some(id) = self.pick(known) else { return };
        let instance = world.id(&id);
        let on_power_off = world.instances().into_iter().find(|it| it.id == instance);
        let on_power_off = on_power_off.map(|it| it.protection.on_guest_shutdown).unwrap_or_default();
        let result = match deed {
            Deed::Start => {
                asked.may_become.push((id.clone(), vec![State::Running]));
                world.cloud.start_instances(&ids(&[&id])).await
            }
            Deed::Stop { force } => {
                asked.may_become.push((id.clone(), vec![State::Stopped]));
                world.cloud.stop_instances(&ids(&[&id]), force).await
            }
            Deed::Terminate => {
                asked.may_become.push((id.clone(), vec![State::Terminated]));
                world.cloud.terminate_instances(&ids(&[&id])).await
            }
            Deed::Reboot => {
                let result = world.cloud.reboot_instances(&ids(&[&id])).await;
                return refused_or(result);
            }
            Deed::GuestPowersOff => {
                let ends = match on_power_off {
                    GuestShutdown::Stop => State::Stopped,
                    GuestShutdown::Terminate => State::Terminated,
                };
                if world.host.plan_of(&instance).is_some() {
                    asked.may_become.push((id, vec![ends]));
                }
                return world.host.guest_powers_off(&instance);
            }
            Deed::MachineIsKilled => {
                if world.host.plan_of(&instance).is_some() {
                    asked.may_become.push((id, vec![State::Stopped]));
                }
                return world.host.machine_is_killed(&instance);
            }
            _ => return world.host.guest_ignores_power_button(&instance),
        };
        // What is so already is no new promise: its machine may have ended just now.
        asked.is_sure =
            result.as_ref().is_ok_and(|changes| changes.iter().all(|it| it.previous != it.current));
        if result.is_err() {
            asked.may_become.clear();
        }
        refused_or(result.map(drop));
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    fn jump_ms(&mut self) -> i64 {
        [-3_600_000, -86_400_000, -1_000, 1_000, 600_000, 1_800_000][self.below(6) as usize]
    }

    fn pick(&mut self, known: &[String]) -> Option<String> {
        let nth = self.below(known.len().max(1) as u64) as usize;
        known.get(nth).cloned()
    }
}

/// A refusal is an answer too, if it is one that this state or a forgotten instance has.
fn refused_or(result: Result<(), Error>) {
    if let Err(error) = result {
        let code = error.code();
        assert!(matches!(code, "IncorrectInstanceState" | "InvalidInstanceID.NotFound"), "{code}: {error}");
    }
}

/// Dies at a commit.
#[derive(Default)]
pub(crate) struct CommitFaults {
    countdown: AtomicI64,
    state: std::sync::Mutex<Option<(When, watch::Sender<bool>)>>,
}

impl CommitFaults {
    pub(crate) fn die_at(&self, nth: i64, when: When) -> watch::Receiver<bool> {
        let (tell, told) = watch::channel(false);
        self.countdown.store(nth, Ordering::SeqCst);
        *self.state.lock().unwrap() = Some((when, tell));
        told
    }

    pub(crate) fn all_well(&self) {
        *self.state.lock().unwrap() = None;
    }

    async fn pass(&self, now: When) {
        let dies = match &*self.state.lock().unwrap() {
            Some((when, tell)) => {
                let counts = *when == now && !*tell.borrow();
                let dies = *tell.borrow() || (counts && self.countdown.fetch_sub(1, Ordering::SeqCst) <= 0);
                if dies {
                    tell.send_replace(true);
                }
                dies
            }
            None => false,
        };
        if dies {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait::async_trait]
impl Faults for CommitFaults {
    async fn before_commit(&self) -> Result<(), ec2vmm_store::Error> {
        self.pass(When::Before).await;
        Ok(())
    }

    async fn after_commit(&self) {
        self.pass(When::After).await;
    }
}
