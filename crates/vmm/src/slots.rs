//! The virtio devices of a machine, each in its PCI slot, as the event loop keeps them: they live from the
//! machine's birth, or from when they were attached, to its end or until they are detached, whatever the
//! guest does.
//!
//! Invariant: a [`SlotId`] is given once. What was still under way for a device that is gone, such as news of
//! a vCPU or an event that is ready, finds nothing, and never another device.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Range,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use ec2vmm_devices::{
    pci::Link,
    state::BadState,
    virtio::{
        CommandError, DeviceAnswer, DeviceCommand, DeviceState, GuestFault, Interrupt, VirtQueue,
        VirtioDevice, Wake,
    },
};
use ec2vmm_image::{Disk, Layer};
use ec2vmm_vmm_api::{
    config::{self, RateLimit},
    control::NetLimits,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// All of them.
#[derive(Default)]
pub struct Slots {
    slots: BTreeMap<SlotId, Slot>,
    given: u32,
}

/// Which one, for as long as the machine lives.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct SlotId(pub u32);

impl Slots {
    /// Takes a device in. None where no id is left: four billion were attached.
    pub fn insert(&mut self, slot: Slot) -> Option<SlotId> {
        let id = SlotId(self.given);
        self.given = self.given.checked_add(1)?;
        self.slots.insert(id, slot);
        Some(id)
    }

    /// Lets go of a device.
    pub fn remove(&mut self, id: SlotId) -> Option<Slot> {
        self.slots.remove(&id)
    }

    /// The device, unless it is gone.
    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(&id)
    }

    /// The device, unless it is gone.
    pub fn get(&self, id: SlotId) -> Option<&Slot> {
        self.slots.get(&id)
    }

    /// The device of this name, if there is one.
    pub fn named(&self, name: &str) -> Option<SlotId> {
        self.slots.iter().find(|(_, slot)| slot.name == name).map(|(id, _)| *id)
    }

    /// The device in this place on PCI bus 0, if there is one.
    pub fn at(&self, pci_device: u8) -> Option<SlotId> {
        self.slots.iter().find(|(_, slot)| slot.pci_device == pci_device).map(|(id, _)| *id)
    }

    /// The first of these places on PCI bus 0 that nothing is in.
    pub fn free_place(&self, mut places: Range<u8>) -> Option<u8> {
        places.find(|place| self.at(*place).is_none())
    }

    /// All, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        self.slots.iter().map(|(id, slot)| (*id, slot))
    }

    /// All, in the order in which they came.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut Slot)> {
        self.slots.iter_mut().map(|(id, slot)| (*id, slot))
    }
}

/// What a device is to those who attach and detach it.
pub enum Part {
    /// A disk.
    Disk(DiskPart),
    /// A network interface.
    Net {
        /// Its hardware address.
        mac: [u8; 6],
        /// What may pass.
        limits: NetLimits,
    },
    /// One that stays.
    Fixed,
}

/// A disk, beside its device.
pub struct DiskPart {
    /// As the device has it.
    pub disk: Disk,
    /// What the guest reads as its serial number.
    pub serial: String,
    /// The file of a disk that is one raw file: its length may be another than the disk's.
    pub raw: Option<File>,
    /// Its files, the top one first, to look at.
    pub layers: Vec<Layer>,
    /// Whether the guest cannot write.
    pub read_only: bool,
    /// The kernel is read from it at each start.
    pub boots: bool,
    /// What may pass.
    pub rate_limit: RateLimit,
}

/// A device and its doorbells.
pub struct Slot {
    /// What metrics and messages call it: `block0`, `net0`, `vsock`, or as whoever attached it does.
    pub name: String,
    /// Its device number on PCI bus 0, 1 to 31.
    pub pci_device: u8,
    /// What it is.
    pub part: Part,
    /// The guest was asked to let go of it.
    pub leaving: bool,
    device: Box<dyn VirtioDevice>,
    /// A doorbell a queue: KVM writes to it when the driver kicks.
    kicks: Vec<Arc<EventFd>>,
    /// Shared with the transport of this run.
    link: Option<Arc<Link>>,
    active: bool,
    /// How often the driver has broken the rules.
    faults: u64,
}

impl Slot {
    /// A device as born.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new(name: String, pci_device: u8, part: Part, device: Box<dyn VirtioDevice>) -> io::Result<Self> {
        let kicks = device
            .identity()
            .queue_sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            name,
            pci_device,
            part,
            leaving: false,
            device,
            kicks,
            link: None,
            active: false,
            faults: 0,
        })
    }

    /// The device.
    pub fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// A doorbell a queue.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// What the device wants to be woken by while it is active.
    pub fn sources(&self) -> Vec<RawFd> {
        self.device.sources()
    }

    /// Tells through which transport the device is reached from now on.
    pub fn attach(&mut self, link: Arc<Link>) {
        self.link = Some(link);
    }

    /// The driver is ready. Whoever calls this wakes every queue and source once afterwards.
    pub fn activate(&mut self, features: u64, queues: Vec<VirtQueue>) {
        match self.device.activate(features, queues) {
            Ok(()) => self.active = true,
            Err(fault) => self.fail(&fault),
        }
    }

    /// Something that the device waits for has come. A device that is not active is not woken.
    pub fn wake(&mut self, wake: Wake) {
        if let Wake::Queue(queue) = wake
            && let Some(kick) = self.kicks.get(usize::from(queue))
            && let Err(error) = kick.read()
            && error.kind() != io::ErrorKind::WouldBlock
        {
            log::error!("{}: reading the doorbell of queue {queue}: {error}", self.name);
        }
        if !self.active {
            return;
        }
        if let Err(fault) = self.device.wake(wake) {
            self.fail(&fault);
        }
    }

    /// Finishes what is under way, because the machine is paused. Whoever calls this wakes every queue and
    /// source once before the machine goes on.
    pub fn hold(&mut self) {
        if self.active
            && let Err(fault) = self.device.quiesce()
        {
            self.fail(&fault);
        }
    }

    /// Brings all that the guest has written into the file behind the device. The device is held.
    ///
    /// # Errors
    /// It is not all there.
    pub fn write_back(&mut self) -> io::Result<()> {
        self.device.write_back()
    }

    /// What the device remembers of a snapshot, once its driver is ready.
    ///
    /// # Errors
    /// It cannot be so here.
    pub fn restore(&mut self, saved: &DeviceState) -> Result<(), BadState> {
        self.device.restore(saved)
    }

    /// Raises every interrupt that the device may have raised and the driver not have heard of.
    pub fn interrupt_all(&self) {
        if let Some(link) = self.link.as_ref().filter(|_| self.active) {
            for queue in (0..).take(self.kicks.len()) {
                link.used(queue);
            }
        }
    }

    /// As born, because the driver asked or because the machine is reset.
    pub fn reset(&mut self) {
        self.device.reset();
        self.active = false;
        if let Some(link) = &self.link {
            link.reset_done();
        }
    }

    /// The host asks something of the device.
    ///
    /// # Errors
    /// The device cannot; nothing has changed.
    pub fn command(&mut self, command: &DeviceCommand) -> Result<DeviceAnswer, CommandError> {
        let answer = self.device.command(command);
        if let Err(CommandError::Guest(fault)) = &answer {
            self.fail(fault);
        }
        answer
    }

    /// Whether a driver uses it.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The driver has broken the rules: the device stands still until it is reset.
    fn fail(&mut self, fault: &GuestFault) {
        self.faults += 1;
        let cause = std::error::Error::source(fault).map_or(String::new(), |source| format!(": {source}"));
        log::warn!(
            "{}: the guest's driver broke the rules, the {}. time, the device waits for a reset: {fault}{cause}",
            self.name,
            self.faults
        );
        self.active = false;
        if let Some(link) = &self.link {
            link.needs_reset();
        }
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kicks: Vec<_> = self.kicks.iter().map(|kick| kick.as_raw_fd()).collect();
        f.debug_struct("Slot").field("name", &self.name).field("kicks", &kicks).finish_non_exhaustive()
    }
}

/// Where disks are on PCI bus 0. Guests name disks and interfaces by their order, and interfaces by place
/// too.
pub const DISKS: Range<u8> = 5..21;
/// Where network interfaces are.
pub const NETS: Range<u8> = 21..29;
/// Where devices come and go.
pub const PLUGGABLE: Range<u8> = DISKS.start..NETS.end;

const _: () = assert!(DISKS.end as usize - DISKS.start as usize == config::DISKS_MAX);
const _: () = assert!(NETS.end as usize - NETS.start as usize == config::NETS_MAX);

#[cfg(test)]
mod tests {
    use std::{os::fd::RawFd, sync::Arc};

    use ec2vmm_devices::virtio::{
        ConfigSpace, GuestFault, Identity, Position, VirtQueue, VirtioDevice, Wake,
    };

    use super::{Part, Slot, Slots};

    /// Finds a fault in whatever its driver does.
    struct Fussy;

    impl VirtioDevice for Fussy {
        fn identity(&self) -> Identity {
            let config = Arc::new(ConfigSpace::read_only(Vec::new()));
            Identity { device_type: 4, pci_class: 0, features: 0, queue_sizes: vec![4], config }
        }

        fn sources(&self) -> Vec<RawFd> {
            Vec::new()
        }

        fn activate(&mut self, _: u64, _: Vec<VirtQueue>) -> Result<(), GuestFault> {
            Ok(())
        }

        fn wake(&mut self, _: Wake) -> Result<(), GuestFault> {
            Err(GuestFault::Request("nothing is right"))
        }

        fn reset(&mut self) {}

        fn positions(&self) -> Vec<Position> {
            Vec::new()
        }
    }

    #[test]
    fn a_driver_that_breaks_the_rules_stops_its_device_until_a_reset() {
        let mut slot = Slot::new("fussy".into(), 1, Part::Fixed, Box::new(Fussy)).unwrap();
        for _ in 0..3 {
            slot.activate(0, Vec::new());
            assert!(slot.is_active());
            slot.wake(Wake::Queue(0));
            assert!(!slot.is_active());
            slot.reset();
        }
    }

    #[test]
    fn an_id_is_given_once() {
        let mut slots = Slots::default();
        let slot = |name: &str, place| Slot::new(name.into(), place, Part::Fixed, Box::new(Fussy)).unwrap();
        let first = slots.insert(slot("first", 5)).unwrap();
        assert_eq!(slots.free_place(5..7), Some(6));
        assert_eq!((slots.named("first"), slots.at(5)), (Some(first), Some(first)));
        assert!(slots.remove(first).is_some());
        assert_eq!(slots.free_place(5..7), Some(5));
        let second = slots.insert(slot("first", 5)).unwrap();
        assert_ne!(first, second);
        assert!(slots.get(first).is_none());
        slots.insert(slot("third", 6)).unwrap();
        assert_eq!(slots.free_place(5..7), None);
        slots.given = u32::MAX;
        assert!(slots.insert(slot("last", 7)).is_none());
        assert_eq!(slots.iter().count(), 2);
    }
}
