//! What a machine process is given at birth: one JSON document on its standard input.
//!
//! A machine process opens no path. Whatever it uses is an open descriptor that it inherits, named
//! here by number. Reads of standard input end at end-of-file.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::sandbox::Sandbox;

/// The number of an open descriptor that the machine process inherits.
pub type Fd = i32;

/// Everything that a machine process needs to know.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// [`crate::VERSION`] of the writer.
    pub version: u32,
    /// `/dev/kvm`, open for reading and writing.
    pub kvm: Fd,
    /// How the process is shut in.
    pub sandbox: Sandbox,
    /// What the machine says of itself by SMBIOS.
    pub identity: Identity,
    /// vCPUs, 1 to 64.
    pub cpus: u8,
    /// Guest memory in MiB, at least [`MEMORY_MIB_MIN`].
    pub memory_mib: u64,
    /// Guest memory is made of huge pages of [`HUGE_PAGE_MIB`] that the host keeps for it (`vm.nr_hugepages`):
    /// all of them are taken at the start, or there is no machine, and none is given back before its end.
    /// `memory_mib` is a whole number of them.
    #[serde(default)]
    pub huge_pages: bool,
    /// Where kernel, initrd and command line come from.
    pub boot: Boot,
    /// A snapshot to go on from, in place of booting; `boot` is then for the next reset.
    #[serde(default)]
    pub restore: Option<Restore>,
    /// Disks in the order in which the guest finds them: the first is `/dev/vda`.
    pub disks: Vec<Disk>,
    /// Network interfaces in the order in which the guest finds them.
    pub nets: Vec<Net>,
    /// A socket family of guest and host, if wanted.
    pub vsock: Option<Vsock>,
    /// The balloon, by which the guest gives memory back.
    #[serde(default)]
    pub balloon: Balloon,
    /// The guest's source of random numbers.
    #[serde(default)]
    pub entropy: Entropy,
    /// The serial console, COM1: a stream socket, pipe or terminal. What the guest prints is
    /// written to it; what can be read from it, the guest reads. Nothing blocks on it: output that
    /// finds no reader for long is dropped, oldest first.
    pub console: Option<Fd>,
    /// A regular file, open for reading and writing, that keeps the end of what the guest prints, however
    /// much that is: a ring of [`CONSOLE_LOG_BYTES`], see [`crate::console_log`]. Independent of `console`.
    #[serde(default)]
    pub console_log: Option<Fd>,
    /// A listening Unix stream socket: whoever connects sees what the guest prints from then on, and what
    /// they write, the guest reads. Independent of `console`.
    #[serde(default)]
    pub console_listener: Option<Fd>,
    /// A regular file, open for writing, that holds the last event: [`crate::Event`] as one line, padded
    /// with spaces to [`RECORD_BYTES`] and rewritten at each. So an owner who was away learns how a
    /// machine ended.
    #[serde(default)]
    pub record: Option<Fd>,
    /// A listening Unix stream socket on which [`crate::control`] is served.
    pub control: Option<Fd>,
    /// A stream on which the machine writes [`crate::Event`]s, one JSON document a line.
    pub events: Option<Fd>,
    /// A pipe or socket whose other end the owner holds: the machine ends when it is closed there.
    /// Without one the machine outlives whoever started it.
    pub lifeline: Option<Fd>,
    /// For how long a vCPU may be busy with interrupts off before [`crate::Event::Stuck`] tells of it,
    /// seconds. 0: nobody looks.
    #[serde(default = "stuck_after_s")]
    pub stuck_after_s: u32,
}

/// [`MachineConfig::stuck_after_s`] where nothing is said: beyond what a kernel's start takes, and about as long
/// as guests' own watchdogs wait.
pub const STUCK_AFTER_S_USUAL: u32 = 30;

fn stuck_after_s() -> u32 {
    STUCK_AFTER_S_USUAL
}

/// The least memory a machine can have, MiB.
pub const MEMORY_MIB_MIN: u64 = 32;
/// The size of a huge page, MiB.
pub const HUGE_PAGE_MIB: u64 = 2;
/// The most vCPUs a machine can have.
pub const CPUS_MAX: u8 = 64;
/// The most disks, and the most network interfaces, a machine can have.
pub const DISKS_MAX: usize = 16;
/// The most network interfaces a machine can have.
pub const NETS_MAX: usize = 8;

/// The most queues a disk can have, and the most pairs of queues a network interface can have.
pub const QUEUES_MAX: u16 = 16;
/// How many of either there are where nothing is said: one a vCPU, but no more than this. A machine's
/// devices share one thread, so that more would not carry more.
pub const QUEUES_USUAL_MAX: u16 = 4;
/// The least MTU a network interface can announce, bytes (virtio 1.2 section 5.1.4.1).
pub const MTU_MIN: u16 = 68;

/// What is kept in the ring file of [`MachineConfig::console_log`], bytes.
pub const CONSOLE_LOG_BYTES: u64 = 64 * 1024;
/// Size of the file of [`MachineConfig::record`], bytes.
pub const RECORD_BYTES: u64 = 4 * 1024;

/// What the machine says of itself by SMBIOS (DSP0134): cloud-init chooses its data source by it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// System UUID. One that starts with `ec2` promises a metadata service at 169.254.169.254.
    pub uuid: Uuid,
    /// System manufacturer: `Amazon EC2` where a metadata service answers, else `ec2vmm`.
    pub manufacturer: String,
    /// System product name: the instance type, such as `t3.micro`.
    pub product: String,
    /// Chassis asset tag: the instance id, if there is one.
    pub asset_tag: Option<String>,
}

/// Where the kernel comes from.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "from")]
pub enum Boot {
    /// From the boot entry on the first disk, read again at every start and every reboot.
    Disk {
        /// Words added at the end of the entry's command line.
        append: Option<String>,
    },
    /// From files.
    Files {
        /// bzImage or ELF.
        kernel: Fd,
        /// Initial RAM disk.
        initrd: Option<Fd>,
        /// The whole command line.
        cmdline: String,
    },
}

/// A snapshot to go on from. The machine is to have what it had: vCPUs, memory, disks as they were, network
/// interfaces with their addresses, vsock.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// The state file, open for reading.
    pub state: Fd,
    /// The memory files, open for reading: a full one, then each difference, in order. They must not change
    /// while the machine lives.
    pub memory: Vec<Fd>,
    /// How guest memory comes out of them.
    #[serde(default)]
    pub backend: MemoryBackend,
    /// What the guest's clocks say.
    #[serde(default)]
    pub clock: Clock,
    /// Note from the start which pages change, so that the next snapshot can be a difference to this one.
    #[serde(default)]
    pub track: bool,
}

/// How guest memory comes out of a snapshot's memory files.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "kind")]
pub enum MemoryBackend {
    /// The full file is mapped: pages that the guest does not write are shared with all machines that have mapped
    /// it. Differences are copied before the guest goes on. Whoever cuts the file short ends the machine by
    /// SIGBUS.
    #[default]
    Mapped,
    /// The machine process reads each page when it is first touched, from the newest file that has it, and those
    /// of a working set ahead. Nothing is shared, and nothing is copied before the guest goes on. A file that
    /// cannot be read any more ends the machine with [`crate::FailureKind::BrokenSnapshot`].
    Userfaultfd {
        /// `/dev/userfaultfd`, open for reading and writing. Without it the process makes the system call, for
        /// which it must be root, or `vm.unprivileged_userfaultfd` be 1.
        device: Option<Fd>,
        /// A file that `record` was, open for reading: the pages in it are brought in while the guest runs.
        #[serde(default)]
        prefetch: Option<Fd>,
        /// A regular file, open for writing, whose content is lost: which pages are touched, in that order. It is
        /// written when the machine ends, is reset, or is asked for it by the control socket. Not together with
        /// `prefetch`, with which touches are not seen.
        #[serde(default)]
        record: Option<Fd>,
    },
}

/// What the clocks of a restored guest say of the time since its snapshot.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// That it has passed: time of day is right, and whatever was to happen meanwhile happens now.
    #[default]
    Advance,
    /// That there was none: time of day is wrong until something sets it, and nothing is late.
    StandStill,
}

/// How a file holds a disk. Recorded, never probed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Byte N of the file is byte N of the disk.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

/// One disk: a file and what lies beneath it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The file that is read and written and, where that is a qcow2 overlay, its backing files in order.
    pub layers: Vec<Layer>,
    /// The guest cannot write, and the first layer is open for reading only.
    pub read_only: bool,
    /// The first layer is thrown away when the machine ends: what the guest flushes need not reach
    /// stable storage.
    #[serde(default)]
    pub scratch: bool,
    /// What the guest reads as the disk's serial number, at most 20 bytes: the volume id.
    pub serial: String,
    /// How many queues the guest can use, 1 to [`QUEUES_MAX`]. None: one a vCPU, at most
    /// [`QUEUES_USUAL_MAX`].
    #[serde(default)]
    pub queues: Option<u16>,
    /// Limits all requests together. Of them reading and writing take bytes.
    #[serde(default)]
    pub rate_limit: RateLimit,
}

/// One file of a disk.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The open file.
    pub fd: Fd,
    /// How to read it.
    pub format: Format,
}

/// One network interface.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// A tap made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, once for each pair of queues that the guest
    /// can use, 1 to [`QUEUES_MAX`]. If several, also with `IFF_MULTI_QUEUE`.
    pub taps: Vec<Fd>,
    /// The interface's hardware address.
    pub mac: [u8; 6],
    /// What the guest is told is the largest packet, bytes, at least [`MTU_MIN`]; none: nothing is said.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Limits frames to the guest. What comes faster waits in the tap, and is dropped there.
    #[serde(default)]
    pub receive_limit: RateLimit,
    /// Limits frames from the guest.
    #[serde(default)]
    pub transmit_limit: RateLimit,
}

/// How much may pass. What is none is not limited.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes.
    #[serde(default)]
    pub bandwidth: Option<TokenBucket>,
    /// Requests of a disk, frames of a network interface.
    #[serde(default)]
    pub operations: Option<TokenBucket>,
}

/// A rate, and how much may pass at once beyond it. Neither can be zero.
///
/// Something passes while there is at least one token. What it takes beyond those that are there is owed,
/// and delays the next.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// How many tokens come a second: bytes or operations.
    #[cfg_attr(feature = "openapi", schema(value_type = u64, minimum = 1))]
    pub per_second: NonZeroU64,
    /// How many tokens there are at the start, and at most. Bytes or operations.
    #[cfg_attr(feature = "openapi", schema(value_type = u64, minimum = 1))]
    pub burst: NonZeroU64,
}

/// How the guest gives memory back.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// The guest takes memory out of the balloon before it kills a process for want of it.
    pub deflate_on_oom: bool,
    /// The guest tells of pages that it has freed, and the host takes them at once.
    pub free_page_reporting: bool,
}

impl Default for Balloon {
    fn default() -> Self {
        Self { deflate_on_oom: true, free_page_reporting: true }
    }
}

/// The guest's source of random numbers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// Limits requests for random bytes.
    #[serde(default)]
    pub rate_limit: RateLimit,
}

/// Guest and host sockets, virtio-vsock, bridged to a Unix socket.
///
/// A program on the host connects to the listening socket and writes one line:
/// * `CONNECT PORT\n`: to reach a guest that listens on PORT. The answer is `OK HOST_PORT\n`, or the
///   connection is closed.
/// * `LISTEN PORT\n`: to be reached by the next guest that connects to PORT of the host (CID 2). The
///   answer comes when one does: `OK GUEST_PORT\n`. A guest that finds nobody listening is refused.
///
/// All that follows is the stream.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// The listening Unix stream socket.
    pub listener: Fd,
}
