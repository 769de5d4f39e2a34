//! A host that is none: no root, no KVM, machines in memory. It serves people who only want the API, and
//! most tests: every call can be slow, fail, hang, or be the last thing that a daemon does.
//!
//! Invariant: it outlives any cloud that uses it, as real machines outlive the daemon. What a call has
//! done stays done, whether its caller lived to hear of it or not.

mod machines;
mod script;

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use ec2vmm_model::{
    Arch,
    credits::Throttle,
    ids::{InstanceId, InterfaceId, VolumeId, VpcId},
};
use tokio::sync::broadcast;

use self::machines::Machine;
pub use self::script::{Fault, Hold, Operation, When};
use crate::host::{
    Capacity, Error, Host, ImageFacts, ImageFile, InterfacePlan, Inventory, MachinePlan, NetworkPlan, News,
    Started, Stream, Usage, VolumePlan,
};

/// A simulated host. Copies are the same host.
#[derive(Clone)]
pub struct Simulated {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    news: broadcast::Sender<News>,
    state: Mutex<State>,
    script: Mutex<script::Script>,
}

/// What is on the host.
#[derive(Default)]
struct State {
    machines: BTreeMap<InstanceId, Machine>,
    volumes: BTreeMap<VolumeId, VolumePlan>,
    interfaces: BTreeMap<InterfaceId, InterfacePlan>,
    networks: BTreeMap<VpcId, NetworkPlan>,
    consoles: BTreeMap<InstanceId, Vec<u8>>,
    /// Volumes and interfaces of machines that run, and whose they are.
    in_use: HashMap<String, InstanceId>,
    /// Whose an address is.
    addresses: HashMap<(VpcId, Ipv4Addr), InterfaceId>,
}

/// How the host is, and how guests are when nothing else is said.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What there is to give.
    pub capacity: Capacity,
    /// What starting a machine takes.
    pub start_takes: Duration,
    /// What a guest takes from the power button to its end.
    pub power_off_takes: Duration,
    /// Size of every image, bytes.
    pub image_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity: Capacity { cpus: 64, memory_mib: 256 * 1024 },
            start_takes: Duration::from_millis(50),
            power_off_takes: Duration::from_millis(200),
            image_bytes: 2 << 30,
        }
    }
}

impl Simulated {
    /// A host on which nothing is.
    pub fn new(settings: Settings) -> Self {
        let (news, _) = broadcast::channel(NEWS_MAX);
        let (state, script) = (Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { settings, news, state, script }) }
    }

    /// What is on the host, without any fault.
    pub fn look(&self) -> Inventory {
        let state = self.state();
        Inventory {
            machines: state.machines.iter().map(|(id, machine)| machine.found(id)).collect(),
            volumes: state.volumes.keys().cloned().collect(),
            interfaces: state.interfaces.keys().cloned().collect(),
            networks: state.networks.keys().cloned().collect(),
            consoles: state.consoles.keys().cloned().collect(),
        }
    }

    /// The plan of the machine that runs, if one does.
    pub fn plan_of(&self, instance: &InstanceId) -> Option<MachinePlan> {
        let state = self.state();
        state.machines.get(instance).filter(|machine| machine.runs()).map(|machine| machine.plan().clone())
    }

    /// Goes down and comes up again: machines, interfaces and networks are gone without a trace, files stay.
    pub fn reboot(&self) {
        let mut state = self.state();
        state.machines.clear();
        state.in_use.clear();
        state.interfaces.clear();
        state.addresses.clear();
        state.networks.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Host for Simulated {
    fn capacity(&self) -> Capacity {
        self.shared.settings.capacity
    }

    fn news(&self) -> broadcast::Receiver<News> {
        self.shared.news.subscribe()
    }

    async fn inventory(&self) -> Result<Inventory, Error> {
        self.call(Operation::Inventory, || Ok(self.look())).await
    }

    async fn inspect_image(&self, _: &ImageFile) -> Result<ImageFacts, Error> {
        let facts = ImageFacts { size_bytes: self.shared.settings.image_bytes, arch: Arch::X86_64 };
        self.call(Operation::InspectImage, || Ok(facts)).await
    }

    async fn create_volume(&self, volume: &VolumePlan) -> Result<(), Error> {
        self.call(Operation::CreateVolume, || {
            self.state().volumes.entry(volume.id.clone()).or_insert_with(|| volume.clone());
            Ok(())
        })
        .await
    }

    async fn delete_volume(&self, volume: &VolumeId) -> Result<(), Error> {
        self.call(Operation::DeleteVolume, || {
            let mut state = self.state();
            if let Some(id) = state.in_use.get(volume.as_str()) {
                return Err(other(format!("volume {volume} is in use by the machine of {id}")));
            }
            state.volumes.remove(volume);
            Ok(())
        })
        .await
    }

    async fn set_aside_volume(&self, volume: &VolumeId) -> Result<(), Error> {
        self.delete_volume(volume).await
    }

    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), Error> {
        self.call(Operation::EnsureNetwork, || {
            self.state().networks.insert(network.vpc.clone(), network.clone());
            Ok(())
        })
        .await
    }

    async fn remove_network(&self, vpc: &VpcId) -> Result<(), Error> {
        self.call(Operation::RemoveNetwork, || {
            self.state().networks.remove(vpc);
            Ok(())
        })
        .await
    }

    async fn ensure_interface(&self, interface: &InterfacePlan) -> Result<(), Error> {
        self.call(Operation::EnsureInterface, || {
            let mut state = self.state();
            if !state.networks.contains_key(&interface.vpc) {
                return Err(other(format!("there is no network {}", interface.vpc)));
            }
            let address = (interface.vpc.clone(), interface.address);
            if let Some(twin) = state.addresses.get(&address).filter(|twin| **twin != interface.id) {
                return Err(other(format!("{twin} has the address {} already", interface.address)));
            }
            state.addresses.insert(address, interface.id.clone());
            state.interfaces.insert(interface.id.clone(), interface.clone());
            Ok(())
        })
        .await
    }

    async fn remove_interface(&self, interface: &InterfaceId) -> Result<(), Error> {
        self.call(Operation::RemoveInterface, || {
            let mut state = self.state();
            if let Some(id) = state.in_use.get(interface.as_str()) {
                return Err(other(format!("interface {interface} is in use by the machine of {id}")));
            }
            if let Some(gone) = state.interfaces.remove(interface) {
                state.addresses.remove(&(gone.vpc, gone.address));
            }
            Ok(())
        })
        .await
    }

    async fn start_machine(&self, machine: &MachinePlan) -> Result<Started, Error> {
        self.call(Operation::StartMachine, || self.start(machine)).await
    }

    async fn press_power_button(&self, instance: &InstanceId) -> Result<(), Error> {
        self.call(Operation::PressPowerButton, || self.press(instance)).await
    }

    async fn reboot_machine(&self, instance: &InstanceId, grace: Duration) -> Result<(), Error> {
        self.call(Operation::RebootMachine, || self.ask_to_reboot(instance, grace)).await
    }

    async fn kill_machine(&self, instance: &InstanceId) -> Result<(), Error> {
        self.call(Operation::KillMachine, || {
            self.kill(instance);
            Ok(())
        })
        .await
    }

    async fn remove_machine(&self, instance: &InstanceId) -> Result<(), Error> {
        self.call(Operation::RemoveMachine, || {
            let mut state = self.state();
            if state.machines.get(instance).is_some_and(Machine::runs) {
                return Err(other(format!("the machine of {instance} runs")));
            }
            state.machines.remove(instance);
            Ok(())
        })
        .await
    }

    async fn console_output(&self, instance: &InstanceId) -> Result<Vec<u8>, Error> {
        self.call(Operation::ConsoleOutput, || {
            Ok(self.state().consoles.get(instance).cloned().unwrap_or_default())
        })
        .await
    }

    async fn console_stream(&self, instance: &InstanceId) -> Result<Box<dyn Stream>, Error> {
        self.call(Operation::ConsoleStream, || self.open_console(instance)).await
    }

    async fn forget_console(&self, instance: &InstanceId) -> Result<(), Error> {
        self.call(Operation::ForgetConsole, || {
            self.state().consoles.remove(instance);
            Ok(())
        })
        .await
    }

    async fn usage(&self, instance: &InstanceId) -> Result<Usage, Error> {
        self.call(Operation::Usage, || self.used(instance)).await
    }

    async fn throttle(&self, instance: &InstanceId, throttle: Throttle) -> Result<(), Error> {
        self.call(Operation::Throttle, || self.limit(instance, throttle)).await
    }
}

fn other(message: String) -> Error {
    Error::Other { message, hint: None }
}

/// News that a receiver can be behind.
const NEWS_MAX: usize = 1024;
