//! The virtio devices of a machine, each in its PCI slot, as the event loop keeps them: they live
//! from the machine's birth to its end, whatever its guest does.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use ec2vmm_devices::{
    pci::Link,
    virtio::{GuestFault, VirtQueue, VirtioDevice, Wake},
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A device and its doorbells.
pub struct Slot {
    /// What metrics and messages call it: `block0`, `net0`, `vsock`.
    pub name: String,
    /// Its device number on PCI bus 0, 1 to 31.
    pub pci_device: u8,
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
    pub fn new(name: String, pci_device: u8, device: Box<dyn VirtioDevice>) -> io::Result<Self> {
        let kicks = device
            .identity()
            .queue_sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new))
            .collect::<io::Result<_>>()?;
        Ok(Self { name, pci_device, device, kicks, link: None, active: false, faults: 0 })
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

    /// As born, because the driver asked or because the machine is reset.
    pub fn reset(&mut self) {
        self.device.reset();
        self.active = false;
        if let Some(link) = &self.link {
            link.reset_done();
        }
    }

    /// Whether a driver uses it.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The driver has broken the rules: the device stands still until it is reset.
    fn fail(&mut self, fault: &GuestFault) {
        self.faults += 1;
        // The first, second, fourth ...: a driver can go on for ever.
        if self.faults.is_power_of_two() {
            let cause =
                std::error::Error::source(fault).map_or(String::new(), |source| format!(": {source}"));
            log::warn!(
                "{}: the guest's driver broke the rules, the {}. time, the device waits for a reset: {fault}{cause}",
                self.name,
                self.faults
            );
        }
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

#[cfg(test)]
mod tests {
    use std::{
        os::fd::RawFd,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use ec2vmm_devices::virtio::{
        ConfigSpace, GuestFault, Identity, Position, VirtQueue, VirtioDevice, Wake,
    };

    use super::Slot;

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

    /// Counts what is logged of the device of this test.
    struct Lines(AtomicU32);

    impl log::Log for Lines {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let of_ours = record.args().to_string().starts_with("fussy");
            self.0.fetch_add(of_ours.into(), Ordering::Relaxed);
        }

        fn flush(&self) {}
    }

    #[test]
    fn a_driver_that_never_stops_to_break_the_rules_does_not_fill_the_log() {
        static LINES: Lines = Lines(AtomicU32::new(0));
        log::set_logger(&LINES).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
        let mut slot = Slot::new("fussy".into(), 1, Box::new(Fussy)).unwrap();
        for _ in 0..1000 {
            slot.activate(0, Vec::new());
            assert!(slot.is_active());
            slot.wake(Wake::Queue(0));
            assert!(!slot.is_active());
            slot.reset();
        }
        assert_eq!(LINES.0.load(Ordering::Relaxed), 10, "1, 2, 4 ... 512");
    }
}
