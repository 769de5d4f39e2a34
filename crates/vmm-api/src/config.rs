//! What a machine process is given at birth: one JSON document on its standard input.
//!
//! A machine process opens no path. Whatever it uses is an open descriptor that it inherits, named
//! here by number. Reads of standard input end at end-of-file.

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
    /// Where kernel, initrd and command line come from.
    pub boot: Boot,
    /// Disks in the order in which the guest finds them: the first is `/dev/vda`.
    pub disks: Vec<Disk>,
    /// Network interfaces in the order in which the guest finds them.
    pub nets: Vec<Net>,
    /// A socket family of guest and host, if wanted.
    pub vsock: Option<Vsock>,
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
}

/// The least memory a machine can have, MiB.
pub const MEMORY_MIB_MIN: u64 = 32;
/// The most vCPUs a machine can have.
pub const CPUS_MAX: u8 = 64;
/// The most disks, and the most network interfaces, a machine can have.
pub const DISKS_MAX: usize = 16;
/// The most network interfaces a machine can have.
pub const NETS_MAX: usize = 8;

/// What is kept in the ring file of [`MachineConfig::console_log`], bytes.
pub const CONSOLE_LOG_BYTES: u64 = 64 * 1024;
/// Size of the file of [`MachineConfig::record`], bytes.
pub const RECORD_BYTES: u64 = 4 * 1024;

/// What the machine says of itself by SMBIOS (DSP0134): cloud-init chooses its data source by it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
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

/// How a file holds a disk. Recorded, never probed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
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
    /// A tap made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    pub tap: Fd,
    /// The interface's hardware address.
    pub mac: [u8; 6],
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
