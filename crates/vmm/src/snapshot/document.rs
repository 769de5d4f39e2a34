//! What a snapshot says of a machine, but for its memory.

use std::{collections::BTreeMap, io};

use ec2vmm_devices::{pci::FunctionState, rtc, serial};
use ec2vmm_vmm_api::{
    MachineConfig,
    config::{Format, Identity},
    control::Booted,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::stamp;
use crate::{
    slots::{DiskPart, Part, Slots},
    x86_64::state::{VcpuState, VmState},
};

/// The state file's content.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Document {
    /// Which version of ec2vmm wrote it, for people.
    pub written_by: String,
    /// The snapshot's name, which its memory file bears too.
    pub id: Uuid,
    /// The host's wall clock when the guest stood still, nanoseconds since 1970.
    pub taken_ns: u64,
    /// What has to be there for the machine to go on.
    pub shape: Shape,
    /// What the machine says of itself by SMBIOS.
    pub identity: Identity,
    /// What was booted.
    pub booted: Booted,
    /// Reboots in place before the snapshot.
    pub reboots: u64,
    /// Interrupt controllers and clock.
    pub vm: VmState,
    /// Each vCPU.
    pub vcpus: Vec<VcpuState>,
    /// PCI functions by slot.
    pub pci: BTreeMap<u8, FunctionState>,
    /// The register that the PCI configuration ports select.
    pub pci_address: u32,
    /// COM1.
    pub serial: serial::Saved,
    /// The clock's registers.
    pub rtc: rtc::State,
    /// ACPI events that the guest has not read.
    pub acpi_pending: u8,
    /// PCI slots that were filled, wanted, and asked for.
    pub hot_plug: [u32; 3],
}

/// What has to be there for the machine to go on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Shape {
    /// vCPUs.
    pub cpus: u8,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// By their places on the PCI bus.
    pub disks: Vec<DiskShape>,
    /// Network interfaces, likewise.
    pub nets: Vec<NetShape>,
    /// Its context id, if it has guest and host sockets.
    pub vsock: Option<u32>,
}

/// A disk as the guest knows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DiskShape {
    /// Its place on the PCI bus.
    pub place: u8,
    /// Serial number.
    pub serial: String,
    /// Whether the guest cannot write.
    pub read_only: bool,
    /// Its files as they were when the guest stood still, all that was written being in them; the one that
    /// is written to first.
    pub layers: Vec<LayerStamp>,
}

/// What tells whether a file has changed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LayerStamp {
    /// How it holds the disk.
    pub format: Format,
    /// Its length, bytes. 0 for a block device.
    pub bytes: u64,
    /// When it was last written to, nanoseconds since 1970.
    pub modified_ns: i64,
}

/// A network interface as the guest knows it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NetShape {
    /// Its place on the PCI bus.
    pub place: u8,
    /// Its hardware address.
    pub mac: [u8; 6],
}

impl Shape {
    /// Of a machine with these devices, whose disks' files are looked at now.
    ///
    /// # Errors
    /// The system does not say how a file is.
    pub fn new(config: &MachineConfig, slots: &Slots) -> io::Result<Self> {
        let mut shape = Self {
            cpus: config.cpus,
            memory_mib: config.memory_mib,
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: config.vsock.as_ref().map(|vsock| vsock.cid),
        };
        for (_, slot) in slots.iter() {
            let place = slot.pci_device;
            match &slot.part {
                Part::Disk(DiskPart { serial, read_only, layers, .. }) => shape.disks.push(DiskShape {
                    place,
                    serial: serial.clone(),
                    read_only: *read_only,
                    layers: layers.iter().map(stamp::of).collect::<io::Result<_>>()?,
                }),
                Part::Net { mac, .. } => shape.nets.push(NetShape { place, mac: *mac }),
                Part::Fixed => {}
            }
        }
        shape.disks.sort_by_key(|disk| disk.place);
        shape.nets.sort_by_key(|net| net.place);
        Ok(shape)
    }
}
