//! The border between policy and effect: what a cloud asks of the host that it runs on.
//!
//! Every call is safe to repeat: what is there already is left as it is, what is gone already is no
//! error. Everything is named after its resource's id, so that [`Host::inventory`] can tell what is whose
//! after any crash.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use async_trait::async_trait;
use ec2vmm_model::{
    credits::Throttle,
    ids::{InstanceId, InterfaceId, VolumeId, VpcId},
    images::DiskFormat,
};
use ec2vmm_vmm_api::{Failure, config::RateLimit, exit::Exit};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::broadcast,
};

/// What a cloud asks of the host that it runs on.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// What there is to give, in all.
    fn capacity(&self) -> Capacity;

    /// What machines tell, from now on. A receiver that falls behind looks at [`Host::inventory`].
    fn news(&self) -> broadcast::Receiver<News>;

    /// What is on this host that belongs to a cloud: machines that run are adopted by this call.
    async fn inventory(&self) -> Result<Inventory, Error>;

    /// Looks at an image: that there is a disk in the file which can be booted.
    async fn inspect_image(&self, image: &ImageFile) -> Result<ImageFacts, Error>;

    /// Makes a volume over an image, in milliseconds whatever the size.
    async fn create_volume(&self, volume: &VolumePlan) -> Result<(), Error>;

    /// Removes a volume's file.
    async fn delete_volume(&self, volume: &VolumeId) -> Result<(), Error>;

    /// Takes a volume of which there is no record out of the pool. Its file is kept for a week: whoever has put
    /// back an old database may want it again.
    async fn set_aside_volume(&self, volume: &VolumeId) -> Result<(), Error>;

    /// Makes a network: its name space, its way out, its DHCP and DNS.
    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), Error>;

    /// Removes a network.
    async fn remove_network(&self, vpc: &VpcId) -> Result<(), Error>;

    /// Makes an interface: its tap, its route, its guard against forged sources, its DHCP entry.
    async fn ensure_interface(&self, interface: &InterfacePlan) -> Result<(), Error>;

    /// Removes an interface.
    async fn remove_interface(&self, interface: &InterfaceId) -> Result<(), Error>;

    /// Starts a machine, and returns when its first instruction is about to be executed. A machine that
    /// runs already, with the same generation, is left alone; one of another generation is an error.
    async fn start_machine(&self, machine: &MachinePlan) -> Result<Started, Error>;

    /// Presses the power button. Returns at once; the guest takes its time, or does not listen.
    async fn press_power_button(&self, instance: &InstanceId) -> Result<(), Error>;

    /// Has the machine reboot in place: same process, same memory and devices, booted again. The guest is asked
    /// to shut down first, and reset when it takes longer than `grace`. Returns at once; [`NewsKind::Rebooted`]
    /// tells when it is done. Who presses the power button meanwhile has it power off instead.
    async fn reboot_machine(&self, instance: &InstanceId, grace: Duration) -> Result<(), Error>;

    /// Ends the machine process at once and returns when it is gone.
    async fn kill_machine(&self, instance: &InstanceId) -> Result<(), Error>;

    /// Removes what is left of a machine that has ended: cgroup, sockets, run-time files. Its console's
    /// last output stays until [`Host::forget_console`].
    async fn remove_machine(&self, instance: &InstanceId) -> Result<(), Error>;

    /// The end of what the serial console has shown since the last start: at most [`CONSOLE_BYTES_MAX`].
    async fn console_output(&self, instance: &InstanceId) -> Result<Vec<u8>, Error>;

    /// A line to the serial console: what the guest prints from now on, and what it shall read.
    async fn console_stream(&self, instance: &InstanceId) -> Result<Box<dyn Stream>, Error>;

    /// Removes what the console has shown.
    async fn forget_console(&self, instance: &InstanceId) -> Result<(), Error>;

    /// What the machine has used since it was started.
    async fn usage(&self, instance: &InstanceId) -> Result<Usage, Error>;

    /// Limits the machine's processor time, or lifts the limit.
    async fn throttle(&self, instance: &InstanceId, throttle: Throttle) -> Result<(), Error>;
}

/// Bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What there is to give, in all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    /// Processors.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
}

/// What a machine tells of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct News {
    /// Who.
    pub instance: InstanceId,
    /// [`MachinePlan::generation`] of the machine that tells.
    pub generation: u64,
    /// What.
    pub kind: NewsKind,
}

/// What happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NewsKind {
    /// It was reset, by itself or on request, and boots again.
    Rebooted,
    /// The guest's kernel said that it has panicked.
    Panicked,
    /// The process has ended.
    Ended(Ending),
}

/// How a machine ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ending {
    /// In its own words.
    Told {
        /// How.
        exit: Exit,
        /// Why, where it failed.
        failure: Option<Failure>,
    },
    /// Without a word: it was killed, or the host went down under it.
    Silent,
}

/// What is on this host.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Machines: those that run, and what is left of those that have ended.
    pub machines: Vec<FoundMachine>,
    /// Volumes.
    pub volumes: Vec<VolumeId>,
    /// Interfaces.
    pub interfaces: Vec<InterfaceId>,
    /// Networks.
    pub networks: Vec<VpcId>,
    /// Consoles that are remembered.
    pub consoles: Vec<InstanceId>,
}

/// A machine that was found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FoundMachine {
    /// Whose.
    pub instance: InstanceId,
    /// [`MachinePlan::generation`].
    pub generation: u64,
    /// How it ended; nothing while it runs.
    pub ended: Option<Ending>,
}

/// Where an image's disk is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageFile {
    /// An absolute path, or one in the pool's folder `images`.
    pub file: PathBuf,
    /// How the file holds the disk.
    pub format: DiskFormat,
}

/// What is on an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageFacts {
    /// The disk's size, bytes.
    pub size_bytes: u64,
    /// The kernel's architecture.
    pub arch: ec2vmm_model::instance_types::Arch,
}

/// A volume that is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VolumePlan {
    /// Its id.
    pub id: VolumeId,
    /// Its size, GiB.
    pub size_gib: u32,
    /// What it is a copy-on-write layer over; else it is empty.
    pub image: Option<ImageFile>,
}

/// A network that is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetworkPlan {
    /// Its id.
    pub vpc: VpcId,
    /// The range's first address. Base + 1 routes, base + 2 is the DNS.
    pub base: Ipv4Addr,
    /// Length of the range's prefix.
    pub prefix: u8,
}

/// An interface that is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InterfacePlan {
    /// Its id.
    pub id: InterfaceId,
    /// The network that it is in.
    pub vpc: VpcId,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Its address.
    pub address: Ipv4Addr,
    /// What DHCP and DNS call it, such as `ip-172-31-0-10`.
    pub hostname: String,
}

/// A machine that is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct MachinePlan {
    /// Whose.
    pub instance: InstanceId,
    /// Counted up with each start: tells one machine of an instance from the next.
    pub generation: u64,
    /// Name of the instance type: what the guest reads as its product name.
    pub instance_type: String,
    /// vCPUs, 1 to 64.
    pub vcpus: u8,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Processor time from the first moment.
    pub throttle: Throttle,
    /// Its disks, the root first.
    pub volumes: Vec<VolumeId>,
    /// Size of its instance store, 10^9 bytes: a disk after the volumes that is empty at each start, is kept
    /// over reboots, and is gone with the machine.
    pub instance_store_gb: Option<u64>,
    /// Its network interfaces, in order.
    pub interfaces: Vec<InterfaceId>,
    /// How fast each interface is, each way.
    pub network: RateLimit,
    /// What its image's cloud-init is told.
    pub guest: GuestData,
}

/// What the guest is told about itself, whichever way: a seed disk, later a metadata service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GuestData {
    /// Public keys for `authorized_keys`.
    pub public_keys: Vec<String>,
    /// Its host name.
    pub hostname: String,
    /// User data, not encoded.
    pub user_data: Option<Vec<u8>>,
}

/// A machine that was started.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Started {
    /// What the start consisted of, in order, each with the microseconds that it took.
    pub steps: Vec<(&'static str, u64)>,
}

/// What a machine has used since it was started.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Processor time, microseconds, of all its threads.
    pub cpu_us: u64,
    /// Memory that it occupies now, bytes.
    pub memory_bytes: u64,
    /// Bytes that it read from its disks.
    pub disk_read_bytes: u64,
    /// Bytes that it wrote to its disks.
    pub disk_written_bytes: u64,
    /// Bytes that it received.
    pub net_received_bytes: u64,
    /// Bytes that it sent.
    pub net_sent_bytes: u64,
}

/// Why the host could not.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such image, or nothing on it that could be booted: the client's fault.
    #[error("{message}")]
    Image {
        /// What and where, causes after colons.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// No room: on the disk, in memory, of processes.
    #[error("{message}")]
    NoRoom {
        /// What and where, causes after colons.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Another daemon has what only one can have.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// What it is.
        path: PathBuf,
    },
    /// The machine is not there, or has ended.
    #[error("no machine of {0} runs")]
    NotRunning(InstanceId),
    /// The machine started and ended before its first instruction.
    #[error("the machine ended: {}", .0.message)]
    Ended(Failure),
    /// Anything else, such as an error of the host's system.
    #[error("{message}")]
    Other {
        /// What and where, causes after colons.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

/// What is kept of a console, bytes: what `GetConsoleOutput` gives.
pub const CONSOLE_BYTES_MAX: usize = 64 * 1024;
