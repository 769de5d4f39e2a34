//! Disks and network interfaces: what there is, and what comes and goes while the guest runs.
//!
//! What a device needs of the host comes as open descriptors with the request, by `SCM_RIGHTS` (unix(7)):
//! sent with any byte of it, in the order that the request names. A request with more or fewer of them than
//! it takes is refused. Send it by itself, not in one piece with another.

use serde::{Deserialize, Serialize};

use crate::config::{Format, RateLimit};

/// The disks of a machine, by their place on the bus.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Disks {
    /// Each of them.
    pub disks: Vec<Disk>,
}

/// A disk.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Disk {
    /// As given when it was attached; `block0`, `block1`, ... for those that the machine was started with.
    pub id: String,
    /// What the guest reads as its serial number.
    pub serial: String,
    /// Its size as the guest sees it.
    pub size_bytes: u64,
    /// The guest cannot write.
    pub read_only: bool,
    /// The kernel is read from it at each start: it cannot be detached.
    pub boots: bool,
    /// Its device number on PCI bus 0, and its slot's number (`_SUN`).
    pub pci_device: u8,
    /// The guest was asked to let go of it, and has not.
    pub leaving: bool,
    /// Limits all requests together.
    pub rate_limit: RateLimit,
}

/// A disk that is to be attached. A descriptor comes for each of its files.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AttachDisk {
    /// What it is called here: 1 to [`ID_BYTES_MAX`] letters, digits, `-`, `_` and `.`, and nothing that
    /// another device is called.
    pub id: String,
    /// How each file holds the disk, the top one first: the first is read and written, those beneath it are
    /// its backing files in order. At most [`LAYERS_MAX`].
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 32))]
    pub layers: Vec<Format>,
    /// The guest cannot write, and the first file may be open for reading only.
    #[serde(default)]
    pub read_only: bool,
    /// The first file is thrown away when the machine ends: what the guest flushes need not reach stable
    /// storage.
    #[serde(default)]
    pub scratch: bool,
    /// What the guest reads as the disk's serial number, at most 20 bytes.
    #[cfg_attr(feature = "openapi", schema(max_length = 20))]
    pub serial: String,
    /// As of [`crate::config::Disk::queues`].
    #[serde(default)]
    pub queues: Option<u16>,
    /// Limits all requests together. Of them reading and writing take bytes.
    #[serde(default)]
    pub rate_limit: RateLimit,
}

/// The size that a disk is to have.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ResizeDisk {
    /// A multiple of 512, and no less than it is: the file grows with it. None, of a raw disk: as much as its
    /// file has now, because somebody else has made it grow.
    pub bytes: Option<u64>,
}

/// The network interfaces of a machine, by their place on the bus.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Nets {
    /// Each of them.
    pub nets: Vec<Net>,
}

/// A network interface.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Net {
    /// As given when it was attached; `net0`, `net1`, ... for those that the machine was started with.
    pub id: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its device number on PCI bus 0, and its slot's number (`_SUN`).
    pub pci_device: u8,
    /// The guest was asked to let go of it, and has not.
    pub leaving: bool,
    /// What may pass.
    pub limits: NetLimits,
}

/// What may pass through a network interface. Each direction has limits of its own.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    /// Frames to the guest. What comes faster waits in the tap, and is dropped there.
    #[serde(default)]
    pub receive: RateLimit,
    /// Frames from the guest.
    #[serde(default)]
    pub transmit: RateLimit,
}

/// A network interface that is to be attached. With it comes a tap made with
/// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, once for each pair of queues that the guest can use, 1 to 16. If several,
/// also with `IFF_MULTI_QUEUE`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AttachNet {
    /// As of [`AttachDisk::id`].
    pub id: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// As of [`crate::config::Net::mtu`].
    #[serde(default)]
    pub mtu: Option<u16>,
    /// What may pass.
    #[serde(default)]
    pub limits: NetLimits,
}

/// The longest id of a device, bytes.
pub const ID_BYTES_MAX: usize = 64;
/// The most files of one disk.
pub const LAYERS_MAX: usize = 32;
