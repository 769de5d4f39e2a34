//! Machines: processes that outlive the daemon. Started here, found again after a crash, followed, ended.
//!
//! Invariant: a machine process is known by its control group and its folder, never by this process's
//! memory alone. The order is: folder and plan, group, process, process into its group, and only then is it
//! told what to be. Whoever is killed in between leaves what [`Machines::inventory`] finds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ec2vmm_model::ids::InstanceId;
use ec2vmm_vmm_api::{
    Failure, FailureKind, SandboxKind,
    config::{Balloon, Entropy, Identity},
};
use tokio::sync::{Mutex as AsyncMutex, broadcast};
use uuid::Uuid;

use super::{
    changed,
    error::{blocking, explain, other, system, with_causes},
    follow::{self, Began, Followers, Life, Phase},
    guest_data,
    ids::Ids,
    pidfd,
    run_dir::{LOG, MachineDir, Plan, RECORD, RunDir},
    volumes::Volumes,
};
use crate::{
    capacity,
    cgroups::{Cgroup, Cgroups, Limits},
    control::{self, Control},
    disks::Disk,
    host::{Ending, Error, FoundMachine, MachinePlan, News, Started},
    machine::{Boot, Net, Newborn, Parts, Ways},
    sandbox::Sandbox,
    sockets,
};

/// What machine processes are made with.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) program: PathBuf,
    pub(super) program_variables: Vec<(String, String)>,
    pub(super) kvm_device: PathBuf,
    pub(super) emulated_kvm: bool,
    pub(super) sandbox: SandboxKind,
    /// For every machine to be in, where there is one.
    pub(super) empty_network: Option<Arc<OwnedFd>>,
    pub(super) ids: Ids,
    /// Where each console's log is, by instance id.
    pub(super) consoles: PathBuf,
}

/// The machines of this host.
pub(super) struct Machines {
    settings: Settings,
    run_dir: RunDir,
    cgroups: Cgroups,
    news: broadcast::Sender<News>,
    /// What is done to a machine is done in turn; nobody waits for another machine.
    places: Mutex<BTreeMap<InstanceId, Place>>,
    /// They follow machines for as long as this lives.
    followers: Followers,
}

/// A machine that is followed, if there is one.
type Place = Arc<AsyncMutex<Option<Arc<Life>>>>;

impl Machines {
    pub(super) fn new(
        settings: Settings,
        run_dir: RunDir,
        cgroups: Cgroups,
        news: broadcast::Sender<News>,
    ) -> Self {
        Self { settings, run_dir, cgroups, news, places: Mutex::default(), followers: Followers::default() }
    }

    /// Starts a machine and waits for its first instruction. One that does not get there leaves nothing.
    pub(super) async fn start(
        &self,
        plan: &MachinePlan,
        volumes: &Volumes,
        nets: Vec<Net>,
        mut steps: Steps,
    ) -> Result<Started, Error> {
        let place = self.place(&plan.instance);
        let life = {
            let mut place = place.lock().await;
            if let Some(life) = self.look(&plan.instance, &mut place).await? {
                return already_there(plan, &life).await;
            }
            let (folder, cgroup) = self.traces(&plan.instance);
            let begun = self.begin(plan, volumes, nets, &mut steps).await;
            let pidfd = begun?;
            let life = Life::new(plan.instance.clone(), plan.generation, folder, cgroup);
            let life = self.followers.start(life, pidfd, self.news.clone(), follow::Known::Fresh)?;
            *place = Some(Arc::clone(&life));
            life
        };
        let phase = life.started().await;
        if let Some(Began { loaded_us, running_us }) = life.began() {
            steps.add("load kernel", loaded_us);
            steps.add("first instruction", running_us.saturating_sub(loaded_us));
            return Ok(Started { steps: steps.0 });
        }
        match phase {
            // It was so quick that nothing else was seen of it.
            Phase::Running => Ok(Started { steps: steps.0 }),
            Phase::Ended(ending) if has_run(&ending) => Ok(Started { steps: steps.0 }),
            Phase::Ended(ending) => {
                let failure = why(ending, &life.folder);
                self.remove(&plan.instance).await?;
                Err(Error::Ended(failure))
            }
            Phase::Starting => Err(other(format!("the machine of {} is followed no more", plan.instance))),
        }
    }

    /// Whether there is a machine, running or ended, that is followed.
    pub(super) async fn is_followed(&self, instance: &InstanceId) -> Result<bool, Error> {
        let place = self.place(instance);
        let mut place = place.lock().await;
        Ok(self.look(instance, &mut place).await?.is_some())
    }

    /// The machine of an instance, if it runs.
    pub(super) async fn running(&self, instance: &InstanceId) -> Result<Arc<Life>, Error> {
        let place = self.place(instance);
        let mut place = place.lock().await;
        match self.look(instance, &mut place).await? {
            Some(life) if !matches!(life.phase(), Phase::Ended(_)) => Ok(life),
            _ => Err(Error::NotRunning(instance.clone())),
        }
    }

    /// Ends a machine at once, whatever it is, and waits until it is gone.
    pub(super) async fn kill(&self, instance: &InstanceId) -> Result<(), Error> {
        let place = self.place(instance);
        let mut place = place.lock().await;
        let life = self.look(instance, &mut place).await?;
        let (_, cgroup) = self.traces(instance);
        end_all(cgroup).await?;
        if let Some(life) = life {
            life.ended().await;
        }
        Ok(())
    }

    /// Removes what is left of a machine that has ended, or that nobody knows any more.
    pub(super) async fn remove(&self, instance: &InstanceId) -> Result<(), Error> {
        let place = self.place(instance);
        let mut place = place.lock().await;
        if let Some(life) = self.look(instance, &mut place).await?
            && !matches!(life.phase(), Phase::Ended(_))
        {
            return Err(other(format!("the machine of {instance} runs")));
        }
        let (folder, cgroup) = self.traces(instance);
        // What is in the group without a plan could be nobody's machine.
        end_all(cgroup.clone()).await?;
        blocking(move || sweep(&folder, &cgroup)).await?;
        self.settings.ids.release(instance);
        *place = None;
        drop(place);
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have come for it meanwhile.
        if places.get(instance).is_some_and(|place| Arc::strong_count(place) == 1) {
            places.remove(instance);
        }
        Ok(())
    }

    /// Every machine that runs or has left something. Those that run are followed from here on.
    pub(super) async fn inventory(&self) -> Result<Vec<FoundMachine>, Error> {
        let (run_dir, cgroups) = (self.run_dir.clone(), self.cgroups.clone());
        let all = blocking(move || {
            Ok(run_dir.list()?.into_iter().chain(cgroups.list()?).collect::<BTreeSet<InstanceId>>())
        });
        let mut found = Vec::new();
        for instance in all.await? {
            let place = self.place(&instance);
            let mut place = place.lock().await;
            let life = self.look(&instance, &mut place).await?;
            let machine = match life {
                Some(life) => {
                    let ended = match life.phase() {
                        Phase::Ended(ending) => Some(ending),
                        Phase::Starting | Phase::Running => None,
                    };
                    Some(FoundMachine { instance, generation: life.generation, ended })
                }
                None => self.leftover(instance).await?,
            };
            found.extend(machine);
        }
        Ok(found)
    }

    /// How a machine has ended that nobody followed.
    async fn leftover(&self, instance: InstanceId) -> Result<Option<FoundMachine>, Error> {
        let (folder, cgroup) = self.traces(&instance);
        blocking(move || {
            if !folder.exists() && !cgroup.exists() {
                // It was removed since it was listed.
                return Ok(None);
            }
            let generation = folder.plan()?.map_or(0, |plan| plan.generation);
            Ok(Some(FoundMachine { instance, generation, ended: Some(folder.ending()?) }))
        })
        .await
    }

    /// The machine in this place; one that was not known and runs is adopted.
    async fn look(
        &self,
        instance: &InstanceId,
        place: &mut Option<Arc<Life>>,
    ) -> Result<Option<Arc<Life>>, Error> {
        if place.is_none() {
            let (folder, cgroup) = self.traces(instance);
            let wanted = instance.clone();
            let found = blocking(move || {
                let Some(plan) = folder.plan()?.filter(|plan| plan.instance == wanted) else {
                    return Ok(None);
                };
                Ok(process_in(&cgroup)?.map(|pidfd| (plan, pidfd, folder, cgroup)))
            });
            if let Some((plan, pidfd, folder, cgroup)) = found.await? {
                tracing::info!(%instance, generation = plan.generation, "adopting a machine");
                let life = Life::new(plan.instance, plan.generation, folder, cgroup);
                let news = self.news.clone();
                *place = Some(self.followers.start(life, pidfd, news, follow::Known::Found)?);
            }
        }
        Ok(place.clone())
    }

    /// From a plan to a process that knows what it is to be.
    async fn begin(
        &self,
        plan: &MachinePlan,
        volumes: &Volumes,
        nets: Vec<Net>,
        steps: &mut Steps,
    ) -> Result<OwnedFd, Error> {
        let (folder, cgroup) = self.traces(&plan.instance);
        let (settings, plan, volumes) = (self.settings.clone(), plan.clone(), volumes.clone());
        let mut so_far = std::mem::take(steps);
        let begun = blocking(move || {
            refuse_leftovers(&plan, &folder)?;
            let birth = Birth { settings: &settings, plan: &plan, folder: &folder, cgroup: &cgroup };
            match birth.give(&volumes, nets, &mut so_far) {
                Ok(pidfd) => Ok((pidfd, so_far)),
                Err(error) => {
                    match sweep(&folder, &cgroup) {
                        Ok(()) => settings.ids.release(&plan.instance),
                        Err(left) => {
                            tracing::warn!(instance = %plan.instance, error = %left, "a start left something");
                        }
                    }
                    Err(error)
                }
            }
        });
        let (pidfd, so_far) = begun.await?;
        *steps = so_far;
        Ok(pidfd)
    }

    fn traces(&self, instance: &InstanceId) -> (MachineDir, Cgroup) {
        (self.run_dir.of(instance), self.cgroups.of(instance))
    }

    fn place(&self, instance: &InstanceId) -> Place {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(places.entry(instance.clone()).or_default())
    }
}

/// How long each part of a start took.
#[derive(Debug, Default)]
pub(super) struct Steps(Vec<(&'static str, u64)>);

impl Steps {
    pub(super) fn add(&mut self, name: &'static str, us: u64) {
        self.0.push((name, us));
    }

    /// Adds what has gone by since.
    pub(super) fn done(&mut self, name: &'static str, since: Instant) {
        self.add(name, u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
}

/// What a machine process is made from.
struct Birth<'a> {
    settings: &'a Settings,
    plan: &'a MachinePlan,
    folder: &'a MachineDir,
    cgroup: &'a Cgroup,
}

impl Birth<'_> {
    /// What is opened closes again on every error; what is left of folder and group is for the caller.
    fn give(&self, volumes: &Volumes, nets: Vec<Net>, steps: &mut Steps) -> Result<OwnedFd, Error> {
        let plan = self.plan;
        let kvm = capacity::open_kvm(&self.settings.kvm_device).map_err(|error| explain(&error))?;
        if !self.settings.emulated_kvm {
            capacity::check_hardware_virtualization().map_err(|error| explain(&error))?;
        }
        capacity::check_memory(plan.memory_mib).map_err(|error| explain(&error))?;
        let since = Instant::now();
        let mut disks =
            plan.volumes.iter().map(|id| volumes.open(id)).collect::<Result<Vec<Disk>, Error>>()?;
        if let Some(gb) = plan.instance_store_gb {
            disks.push(volumes.instance_store(&plan.instance, gb)?);
        }
        steps.done("open volumes", since);
        let since = Instant::now();
        disks.push(guest_data::disk(&plan.instance, &plan.guest)?);
        steps.done("make seed", since);

        let since = Instant::now();
        let id = self.settings.ids.take(&plan.instance)?;
        let own = (self.settings.sandbox == SandboxKind::Full).then_some(id);
        let named = Plan { instance: plan.instance.clone(), generation: plan.generation, id: own };
        self.folder.create(&named)?;
        let (throttle, vcpus, memory_mib) = (plan.throttle, plan.vcpus, Some(plan.memory_mib));
        self.cgroup.create(&Limits { throttle, vcpus, memory_mib })?;
        let control = listen(&self.folder.control_socket())?;
        let ways = Ways {
            console_log: Some(self.console_log()?.into()),
            console_listener: Some(listen(&self.folder.console_socket())?),
            record: Some(self.folder.file(RECORD)?.into()),
            ..Ways::default()
        };
        let network = self.settings.empty_network.as_ref().map(|network| network.try_clone()).transpose();
        let network = network.map_err(system("handing over a network namespace"))?;
        let parts = Parts {
            kvm,
            sandbox: Sandbox::of(self.settings.sandbox, id, network),
            identity: identity(plan),
            cpus: plan.vcpus,
            memory_mib: plan.memory_mib,
            huge_pages: false,
            boot: Boot::Disk { append: None },
            restore: None,
            disks,
            nets,
            balloon: Balloon::default(),
            entropy: Entropy::default(),
            vsock: None,
            control: Some(control),
        };
        steps.done("prepare", since);
        let since = Instant::now();
        let Settings { program, program_variables, .. } = self.settings;
        let newborn = Newborn::start(program, program_variables, parts, ways, &self.folder.file(LOG)?)
            .map_err(|error| explain(&error))?;
        let pidfd = self.settle(newborn)?;
        steps.done("spawn", since);
        Ok(pidfd)
    }

    /// Puts the process where it is found again, and only then tells it what to be.
    fn settle(&self, newborn: Newborn) -> Result<OwnedFd, Error> {
        let pid = newborn.pid();
        changed(format_args!("started process {pid}"));
        let settled = self
            .cgroup
            .add(pid)
            .and_then(|()| expendable(pid))
            .and_then(|()| self.folder.put("pid", &format!("{pid}\n")))
            .and_then(|()| newborn.pidfd().map_err(system("following the machine process")));
        let pidfd = match settled {
            Ok(pidfd) => pidfd,
            Err(error) => {
                newborn.end();
                return Err(error);
            }
        };
        if let Err(error) = newborn.tell() {
            // Its end tells more.
            tracing::debug!(instance = %self.plan.instance, %error, "a machine process was not told what to be");
        }
        changed(format_args!("told process {pid} what to be"));
        Ok(pidfd)
    }

    fn console_log(&self) -> Result<File, Error> {
        let path = self.settings.consoles.join(self.plan.instance.as_str());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        options.open(&path).map_err(system(format!("making the console's log {}", path.display())))
    }
}

/// A daemon that the kernel shall spare when memory runs out has not earned that for its machines.
fn expendable(pid: u32) -> Result<(), Error> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let read = std::fs::read_to_string(&path);
    let now = read.map_err(system(format!("reading {path}")))?;
    match now.trim().parse::<i32>() {
        Ok(..0) => std::fs::write(&path, "0").map_err(system(format!("writing 0 to {path}"))),
        _ => Ok(()),
    }
}

/// A machine with the same generation is the one that was asked for.
async fn already_there(plan: &MachinePlan, life: &Life) -> Result<Started, Error> {
    if life.generation != plan.generation {
        return Err(still_there(plan, life.generation));
    }
    match life.started().await {
        Phase::Running => Ok(Started::default()),
        Phase::Starting | Phase::Ended(_) => Err(still_there(plan, life.generation)),
    }
}

/// One that has ended is removed before the next is started, so that its end is never overlooked.
fn refuse_leftovers(plan: &MachinePlan, folder: &MachineDir) -> Result<(), Error> {
    match folder.plan()? {
        Some(left) => Err(still_there(plan, left.generation)),
        None => Ok(()),
    }
}

fn still_there(plan: &MachinePlan, generation: u64) -> Error {
    other(format!("generation {generation} of the machine of {} is still there", plan.instance))
}

/// The process in a group, held so that its number cannot come to mean another.
fn process_in(cgroup: &Cgroup) -> Result<Option<OwnedFd>, Error> {
    for number in cgroup.processes()? {
        let pidfd = pidfd::open(number).map_err(system("following a machine process"))?;
        // Between the two it may have ended, and its number have come to another.
        if pidfd.is_some() && cgroup.processes()?.contains(&number) {
            return Ok(pidfd);
        }
    }
    Ok(None)
}

/// Ends whatever is in a group, and waits until it is gone.
async fn end_all(cgroup: Cgroup) -> Result<(), Error> {
    let deadline = Instant::now() + KILL_MAX;
    loop {
        let group = cgroup.clone();
        let pidfd = blocking(move || {
            let pidfd = process_in(&group)?;
            if pidfd.is_some() {
                group.kill()?;
            }
            Ok(pidfd)
        });
        let Some(pidfd) = pidfd.await? else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if tokio::time::timeout(left, follow::gone(pidfd)).await.is_err() {
            return Err(other("a machine process does not end, even when it is killed"));
        }
    }
}

/// Removes what a machine leaves: the folder last, because it says what the rest was.
fn sweep(folder: &MachineDir, cgroup: &Cgroup) -> Result<(), Error> {
    cgroup.remove()?;
    folder.remove()
}

fn listen(path: &Path) -> Result<OwnedFd, Error> {
    sockets::listen_named(path).map_err(|error| explain(&error))
}

/// Nobody answers at 169.254.169.254 yet, so the UUID must not promise it: cloud-init would wait minutes.
fn identity(plan: &MachinePlan) -> Identity {
    let promises = |uuid: &Uuid| {
        let bytes = [uuid.into_bytes(), uuid.to_bytes_le()].map(Uuid::from_bytes);
        bytes.iter().any(|uuid| uuid.to_string().starts_with("ec2"))
    };
    let uuids = (0_u8..=255)
        .map(|turn| Uuid::new_v5(&MACHINES, &[plan.instance.as_str().as_bytes(), &[turn]].concat()));
    Identity {
        // The same at every start.
        uuid: uuids.into_iter().find(|uuid| !promises(uuid)).unwrap_or_default(),
        manufacturer: MANUFACTURER.to_owned(),
        product: plan.instance_type.clone(),
        asset_tag: Some(plan.instance.as_str().to_owned()),
    }
}

/// Whether a machine that ended so must have run.
pub(super) fn has_run(ending: &Ending) -> bool {
    match ending {
        Ending::Silent => false,
        Ending::Told { failure: None, .. } => true,
        Ending::Told { failure: Some(failure), .. } => matches!(
            failure.kind,
            FailureKind::TripleFault
                | FailureKind::GuestPanic
                | FailureKind::KvmInternalError
                | FailureKind::ForbiddenCall
        ),
    }
}

fn why(ending: Ending, folder: &MachineDir) -> Failure {
    match ending {
        Ending::Told { failure: Some(failure), .. } => failure,
        Ending::Told { failure: None, .. } | Ending::Silent => {
            let said = folder.last_words().map(|line| format!(": {line}")).unwrap_or_default();
            let message = format!("the machine process ended before its first instruction{said}");
            Failure { kind: FailureKind::Other, message, hint: None }
        }
    }
}

/// What a machine's control socket did not do.
pub(super) fn refused(life: &Life, error: &control::Error) -> Error {
    match error {
        control::Error::Closed(_) => Error::NotRunning(life.instance.clone()),
        // It may have ended while it was asked.
        _ if matches!(life.phase(), Phase::Ended(_)) => Error::NotRunning(life.instance.clone()),
        error => other(format!("the machine of {}: {}", life.instance, with_causes(error))),
    }
}

/// The way to a machine's control socket.
pub(super) fn control(life: &Life) -> Control {
    Control::new(life.folder.control_socket())
}

/// A killed process is gone in milliseconds, but for one that waits for a disk.
const KILL_MAX: Duration = Duration::from_secs(30);
const MANUFACTURER: &str = "ec2vmm";
/// The name space of system UUIDs.
const MACHINES: Uuid = Uuid::from_u128(0x4c9d_1d0e_55a3_4f0e_9a67_8b1f_0c2e_73d5);

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that leaves something out says so")]
mod tests {
    use std::process::Command;

    use super::expendable;

    #[test]
    fn a_machine_is_not_spared_when_memory_runs_out() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let path = format!("/proc/{}/oom_score_adj", child.id());
        match std::fs::write(&path, "-500") {
            Ok(()) => {
                expendable(child.id()).unwrap();
                assert_eq!(std::fs::read_to_string(&path).unwrap(), "0\n");
                std::fs::write(&path, "300").unwrap();
                expendable(child.id()).unwrap();
                assert_eq!(std::fs::read_to_string(&path).unwrap(), "300\n");
            }
            Err(error) => eprintln!("SKIPPED: only root may: {error}"),
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(expendable(child.id()).is_err());
    }
}
