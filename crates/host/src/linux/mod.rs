//! Real machines on this Linux host.
//!
//! Invariant: what is on the host is named after its resource's id and found again by that name: volumes
//! and consoles in the state folder, machines by folder and control group, networks in the kernel. A daemon
//! that is killed at any point loses nothing but time.

mod console;
pub(crate) mod error;
mod follow;
mod guest_data;
mod ids;
mod images;
mod inventory;
mod machines;
pub mod network;
mod pidfd;
mod run_dir;
mod volumes;

#[cfg(test)]
mod killer;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::DirBuilder,
    ops::RangeInclusive,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use ec2vmm_model::{
    credits::Throttle,
    ids::{InstanceId, InterfaceId, VolumeId, VpcId},
};
use ec2vmm_vmm_api::{
    SandboxKind,
    config::QUEUES_USUAL_MAX,
    control::{Metrics, PowerAction, PowerRequest},
};
use tokio::sync::broadcast;

use self::{
    console::Consoles,
    error::{blocking, explain, other, system},
    ids::Ids,
    images::Images,
    machines::{Machines, Settings, Steps},
    network::Network,
    run_dir::RunDir,
    volumes::Volumes,
};
use crate::{
    capacity,
    cgroups::Cgroups,
    held::Held,
    host::{
        Capacity, Error, Host, ImageFacts, ImageFile, InterfacePlan, Inventory, MachinePlan, NetworkPlan,
        News, Started, Stream, Usage, VolumePlan,
    },
    machine::Net,
    sandbox,
};

/// How this host is used.
#[derive(Clone, Debug)]
pub struct Config {
    /// What stays when the host goes down: images, volumes, consoles.
    pub state_dir: PathBuf,
    /// What goes then: the machines' sockets and records. On a tmpfs, with a path of at most 70 bytes.
    pub run_dir: PathBuf,
    /// The control group of all machines, such as `/sys/fs/cgroup/ec2vmm`: its parent exists.
    pub cgroup: PathBuf,
    /// Processor time, memory and processes of machines are limited. Without it they are only counted.
    pub limits: bool,
    /// The machine process, `ec2vmm-vmm`: an absolute path. See [`crate::machine::find_program`].
    pub program: PathBuf,
    /// All the environment that a machine process gets, such as `EC2VMM_LOG`.
    pub program_variables: Vec<(String, String)>,
    /// How machine processes are shut in.
    pub sandbox: SandboxKind,
    /// User ids, and group ids of the same numbers, of which each machine's process has one. Nobody else has
    /// them: see [`crate::sandbox::DAEMON_IDS`].
    pub ids: RangeInclusive<u32>,
    /// `/dev/kvm`.
    pub kvm_device: PathBuf,
    /// The host's KVM may emulate every instruction.
    pub emulated_kvm: bool,
    /// The networks of machines; without one there are none, and machines have no interfaces.
    pub network: Option<network::Config>,
}

/// This host.
pub struct Linux {
    shared: Arc<Shared>,
    /// Not in what is shared: what was begun for somebody who has gone goes on to its end.
    _held: [Held; 2],
}

struct Shared {
    capacity: Capacity,
    news: broadcast::Sender<News>,
    images: Images,
    volumes: Volumes,
    consoles: Consoles,
    machines: Machines,
    network: Option<Network>,
    /// Hardware addresses of the interfaces that were ensured.
    macs: Mutex<BTreeMap<InterfaceId, [u8; 6]>>,
}

impl Linux {
    /// Takes this host: folders, control groups, networks. Machines that run are left alone until they are
    /// asked for, by [`Host::inventory`] or by name.
    ///
    /// # Errors
    /// A folder cannot be made, there is no cgroup v2, or networks cannot be had. [`Error::InUse`]: another daemon
    /// has the control group or the folder of machines; nothing was touched then.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).map_err(system(format!("the path {}", path.display())))
        };
        // Backing files are recorded by their paths, and a machine process starts in another folder.
        let config = Config {
            state_dir: absolute(config.state_dir)?,
            run_dir: absolute(config.run_dir)?,
            program: absolute(config.program)?,
            ..config
        };
        let (cgroup, limits, run_dir) =
            (config.cgroup.clone(), config.limits, config.run_dir.join("machines"));
        let taken = blocking(move || {
            let (cgroups, run_dir) = (Cgroups::start(&cgroup, limits)?, RunDir::start(run_dir)?);
            Ok(([hold(cgroups.path())?, hold(run_dir.path())?], cgroups, run_dir))
        });
        let (held, cgroups, run_dir) = taken.await?;
        let network = match config.network.clone() {
            Some(network) => Some(Network::start(network).await.map_err(|error| explain(&error))?),
            None => None,
        };
        let news = broadcast::Sender::new(NEWS_MAX);
        let told = news.clone();
        let shared = blocking(move || {
            let folder = |name: &str| {
                let path = config.state_dir.join(name);
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
                made.map_err(system(format!("making the folder {}", path.display()))).map(|()| path)
            };
            let volumes = folder("volumes")?;
            let images = Images::new(folder("images")?, volumes.clone());
            let volumes = Volumes::start(volumes, images.clone())?;
            let consoles = folder("consoles")?;
            let empty_network = match config.sandbox {
                SandboxKind::Full => Some(sandbox::empty_network().map_err(|error| explain(&error))?),
                _ => None,
            };
            let settings = Settings {
                sandbox: config.sandbox,
                empty_network: empty_network.map(Arc::new),
                ids: Ids::start(config.ids, &run_dir)?,
                program: config.program,
                program_variables: config.program_variables,
                kvm_device: config.kvm_device,
                emulated_kvm: config.emulated_kvm,
                consoles: consoles.clone(),
            };
            Ok(Shared {
                capacity: capacity()?,
                news,
                images,
                volumes,
                consoles: Consoles::new(consoles),
                machines: Machines::new(settings, run_dir, cgroups, told),
                network,
                macs: Mutex::default(),
            })
        });
        Ok(Self { shared: Arc::new(shared.await?), _held: held })
    }
}

/// Keeps a folder from every other daemon.
fn hold(path: &Path) -> Result<Held, Error> {
    let held = Held::patiently(path).map_err(system(format!("locking {}", path.display())))?;
    held.ok_or_else(|| Error::InUse { path: path.to_owned() })
}

impl Shared {
    fn network(&self) -> Result<&Network, Error> {
        self.network.as_ref().ok_or_else(|| other("this host has no networks: they were switched off"))
    }

    async fn start_machine(&self, plan: &MachinePlan) -> Result<Started, Error> {
        let mut steps = Steps::default();
        let since = Instant::now();
        let mut nets = Vec::new();
        let queues = QUEUES_USUAL_MAX.min(plan.vcpus.into());
        // A tap that a machine has is not to be had again: one that runs already is only looked at.
        if !self.machines.is_followed(&plan.instance).await? {
            for interface in &plan.interfaces {
                let mac = self.macs.lock().unwrap_or_else(PoisonError::into_inner).get(interface).copied();
                let mac = mac.ok_or_else(|| other(format!("the interface {interface} was not ensured")))?;
                let taps = self.network()?.open_tap(interface, queues).await;
                let taps = taps.map_err(|error| explain(&error))?;
                let limit = plan.network;
                nets.push(Net { taps, mac, mtu: None, receive_limit: limit, transmit_limit: limit });
            }
            steps.done("open taps", since);
        }
        self.machines.start(plan, &self.volumes, nets, steps).await
    }

    async fn power(&self, instance: &InstanceId, request: impl Into<PowerRequest>) -> Result<(), Error> {
        let life = self.machines.running(instance).await?;
        machines::control(&life).power(request).await.map_err(|error| machines::refused(&life, &error))
    }
}

#[async_trait]
impl Host for Linux {
    fn capacity(&self) -> Capacity {
        self.shared.capacity
    }

    fn news(&self) -> broadcast::Receiver<News> {
        self.shared.news.subscribe()
    }

    async fn inventory(&self) -> Result<Inventory, Error> {
        inventory::take(&self.shared).await
    }

    async fn inspect_image(&self, image: &ImageFile) -> Result<ImageFacts, Error> {
        let (images, image) = (self.shared.images.clone(), image.clone());
        blocking(move || images.inspect(&image)).await
    }

    async fn create_volume(&self, volume: &VolumePlan) -> Result<(), Error> {
        let (volumes, volume) = (self.shared.volumes.clone(), volume.clone());
        blocking(move || volumes.create(&volume)).await
    }

    async fn delete_volume(&self, volume: &VolumeId) -> Result<(), Error> {
        let (volumes, volume) = (self.shared.volumes.clone(), volume.clone());
        blocking(move || volumes.delete(&volume)).await
    }

    async fn set_aside_volume(&self, volume: &VolumeId) -> Result<(), Error> {
        let (volumes, volume) = (self.shared.volumes.clone(), volume.clone());
        blocking(move || volumes.set_aside(&volume)).await
    }

    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), Error> {
        self.shared.network()?.ensure_network(network).await.map_err(|error| explain(&error))
    }

    async fn remove_network(&self, vpc: &VpcId) -> Result<(), Error> {
        self.shared.network()?.remove_network(vpc).await.map_err(|error| explain(&error))
    }

    async fn ensure_interface(&self, interface: &InterfacePlan) -> Result<(), Error> {
        self.shared.network()?.ensure_interface(interface).await.map_err(|error| explain(&error))?;
        let mut macs = self.shared.macs.lock().unwrap_or_else(PoisonError::into_inner);
        macs.insert(interface.id.clone(), interface.mac);
        Ok(())
    }

    async fn remove_interface(&self, interface: &InterfaceId) -> Result<(), Error> {
        self.shared.network()?.remove_interface(interface).await.map_err(|error| explain(&error))?;
        self.shared.macs.lock().unwrap_or_else(PoisonError::into_inner).remove(interface);
        Ok(())
    }

    async fn start_machine(&self, machine: &MachinePlan) -> Result<Started, Error> {
        // On a task of its own: who does not wait for the end of it leaves nothing half done.
        let (shared, machine) = (Arc::clone(&self.shared), machine.clone());
        let start = tokio::spawn(async move { shared.start_machine(&machine).await });
        start.await.unwrap_or_else(|error| Err(other(format!("starting a machine: {error}"))))
    }

    async fn press_power_button(&self, instance: &InstanceId) -> Result<(), Error> {
        self.shared.power(instance, PowerAction::PowerButton).await
    }

    async fn reboot_machine(&self, instance: &InstanceId, grace: Duration) -> Result<(), Error> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.shared.power(instance, PowerRequest::reboot(grace_ms)).await
    }

    async fn kill_machine(&self, instance: &InstanceId) -> Result<(), Error> {
        self.shared.machines.kill(instance).await
    }

    async fn remove_machine(&self, instance: &InstanceId) -> Result<(), Error> {
        self.shared.machines.remove(instance).await
    }

    async fn console_output(&self, instance: &InstanceId) -> Result<Vec<u8>, Error> {
        let (consoles, instance) = (self.shared.consoles.clone(), instance.clone());
        blocking(move || consoles.output(&instance)).await
    }

    async fn console_stream(&self, instance: &InstanceId) -> Result<Box<dyn Stream>, Error> {
        let life = self.shared.machines.running(instance).await?;
        console::stream(instance, &life.folder.console_socket()).await
    }

    async fn forget_console(&self, instance: &InstanceId) -> Result<(), Error> {
        let (consoles, instance) = (self.shared.consoles.clone(), instance.clone());
        blocking(move || consoles.forget(&instance)).await
    }

    async fn usage(&self, instance: &InstanceId) -> Result<Usage, Error> {
        let life = self.shared.machines.running(instance).await?;
        let cgroup = life.cgroup.clone();
        let taken = blocking(move || cgroup.taken()).await?;
        let metrics = machines::control(&life).metrics().await;
        let metrics = metrics.map_err(|error| machines::refused(&life, &error))?;
        Ok(Usage {
            cpu_us: taken.cpu_us,
            memory_bytes: taken.memory_bytes,
            disk_read_bytes: sum(&metrics, "block", "read_bytes"),
            disk_written_bytes: sum(&metrics, "block", "write_bytes"),
            net_received_bytes: sum(&metrics, "net", "rx_bytes"),
            net_sent_bytes: sum(&metrics, "net", "tx_bytes"),
        })
    }

    async fn throttle(&self, instance: &InstanceId, throttle: Throttle) -> Result<(), Error> {
        let life = self.shared.machines.running(instance).await?;
        let cgroup = life.cgroup.clone();
        blocking(move || cgroup.throttle(throttle)).await
    }
}

/// One counter of all devices of a kind.
fn sum(metrics: &Metrics, kind: &str, counter: &str) -> u64 {
    let of_kind = |name: &str| {
        name.strip_prefix(kind).is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let devices = metrics.devices.iter().filter(|(name, _)| of_kind(name));
    devices.filter_map(|(_, counters)| counters.get(counter)).sum()
}

fn capacity() -> Result<Capacity, Error> {
    let all_mib = capacity::memory_mib().map_err(system("reading /proc/meminfo"))?;
    let memory_mib = all_mib.saturating_sub((all_mib / HOST_SHARE).clamp(HOST_MIB_MIN, HOST_MIB_MAX));
    Ok(Capacity { cpus: u32::try_from(capacity::cpus()).unwrap_or(u32::MAX), memory_mib })
}

/// What of its memory the host keeps for itself, the daemon and the monitors: a sixteenth, within bounds.
const HOST_SHARE: u64 = 16;
const HOST_MIB_MIN: u64 = 256;
const HOST_MIB_MAX: u64 = 4096;

/// Tells of a change to the host, each of them and nothing else: who wants to know how a machine comes about,
/// or to stop it in the middle, listens to this target.
pub(crate) fn changed(what: std::fmt::Arguments<'_>) {
    tracing::debug!(target: CHANGES, "{what}");
}

/// The tracing target of every change that is made to the host for a machine.
pub const CHANGES: &str = "ec2vmm_host::linux::changes";

/// News that a receiver can be behind.
const NEWS_MAX: usize = 1024;
