//! What the two sides of a virtio function share: the transport on vCPU threads and the device on the
//! event loop. Atomics and eventfds only, so that raising an interrupt takes no lock.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering},
    },
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Saved;
use crate::{pci::msix, state::BadState, virtio::Interrupt};

/// Device status, interrupt vectors and their eventfds.
///
/// A reset of an active device takes both sides: the transport asks for it
/// ([`super::Wiring::reset`]), the loop resets the device and says so ([`Self::reset_done`]); until then
/// the driver reads its old status, and all that it writes to the transport is lost
/// (virtio 1.2 section 2.4.1 has it poll).
#[derive(Debug)]
pub struct Link {
    /// The device status in the low byte, and [`RESETTING`]: one word, so that a driver that reads that
    /// the reset is done can write at once.
    status: AtomicU16,
    isr: AtomicU8,
    msix_enabled: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    eventfds: Arc<[EventFd]>,
}

impl Link {
    /// For a device of so many queues: one vector for each, and one for its configuration.
    ///
    /// # Errors
    /// The host is out of descriptors or memory.
    pub fn new(queues: usize) -> io::Result<Arc<Self>> {
        let eventfds: io::Result<Vec<_>> =
            (0..=queues).map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)).collect();
        Ok(Arc::new(Self {
            status: AtomicU16::new(0),
            isr: AtomicU8::new(0),
            msix_enabled: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            eventfds: eventfds?.into(),
        }))
    }

    /// One for each MSI-X vector: the vector fires when its eventfd is written. See
    /// [`super::Wiring::route`].
    pub fn eventfds(&self) -> &[EventFd] {
        &self.eventfds
    }

    /// The loop has reset the device.
    pub fn reset_done(&self) {
        if self.is_resetting() {
            // What the device still raised before it heard of the reset is of the past.
            self.isr.store(0, Ordering::Relaxed);
            self.status.store(0, Ordering::Release);
        }
    }

    /// The device cannot go on (a [`crate::virtio::GuestFault`]): the driver is told, and has to reset
    /// it (virtio 1.2 section 2.1.1). Does nothing unless the driver is at work.
    pub fn needs_reset(&self) {
        let (at_work, needs_reset) = (u16::from(status::DRIVER_OK), u16::from(status::NEEDS_RESET));
        let set = |status: u16| (status & at_work != 0).then_some(status | needs_reset);
        if self.status.fetch_update(Ordering::AcqRel, Ordering::Relaxed, set).is_ok() {
            self.config_changed();
        }
    }

    /// Device status as the driver reads it.
    pub fn status(&self) -> u8 {
        let [status, _] = self.status.load(Ordering::Acquire).to_le_bytes();
        status
    }

    pub(super) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits.into(), Ordering::AcqRel);
    }

    pub(super) fn is_resetting(&self) -> bool {
        self.status.load(Ordering::Acquire) & RESETTING != 0
    }

    /// The transport forgets what the driver has set. With `wait` the status stays until the loop
    /// says [`Self::reset_done`].
    pub(super) fn reset(&self, wait: bool) {
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        self.queue_vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::Relaxed));
        self.isr.store(0, Ordering::Relaxed);
        if wait {
            self.status.fetch_or(RESETTING, Ordering::AcqRel);
        } else if !self.is_resetting() {
            self.status.store(0, Ordering::Release);
        }
    }

    pub(super) fn set_msix_enabled(&self, enabled: bool) {
        self.msix_enabled.store(enabled, Ordering::Relaxed);
    }

    /// Reads the ISR status, which clears it (virtio 1.2 section 4.1.4.5).
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Relaxed);
    }

    /// The vector of a queue; none of a queue that is not there.
    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors.get(usize::from(queue)).map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.existing(vector), Ordering::Relaxed);
        }
    }

    /// As it was: status, ISR and vectors.
    pub(super) fn restore(&self, saved: &Saved) -> Result<(), BadState> {
        let vectors = saved.queues.iter().map(|queue| queue.vector).chain([saved.config_vector]);
        if vectors.into_iter().any(|vector| vector != self.existing(vector)) {
            return Err(BadState("it uses an interrupt vector that is not there"));
        }
        self.status.store(saved.status.into(), Ordering::Release);
        self.isr.store(saved.isr, Ordering::Relaxed);
        self.config_vector.store(saved.config_vector, Ordering::Relaxed);
        for (slot, queue) in self.queue_vectors.iter().zip(&saved.queues) {
            slot.store(queue.vector, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The ISR status, which stays.
    pub(super) fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
    }

    pub(super) fn shared_eventfds(&self) -> Arc<[EventFd]> {
        Arc::clone(&self.eventfds)
    }

    /// A vector that is not there reads back as none, by which the driver knows that it failed.
    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.eventfds.len() { vector } else { NO_VECTOR }
    }

    fn raise(&self, vector: u16, isr: u8) {
        if isr == isr::CONFIG || !self.msix_enabled.load(Ordering::Relaxed) {
            self.isr.fetch_or(isr, Ordering::AcqRel);
        }
        if let Some(eventfd) = self.eventfds.get(usize::from(vector)) {
            msix::fire(eventfd);
        }
    }
}

impl Interrupt for Link {
    fn used(&self, queue: u16) {
        self.raise(self.queue_vector(queue), isr::QUEUE);
    }

    fn config_changed(&self) {
        self.raise(self.config_vector(), isr::CONFIG);
    }
}

/// Bits of the device status (virtio 1.2 section 2.1).
pub(super) mod status {
    pub(in super::super) const ACKNOWLEDGE: u8 = 1;
    pub(in super::super) const DRIVER: u8 = 2;
    pub(in super::super) const DRIVER_OK: u8 = 4;
    pub(in super::super) const FEATURES_OK: u8 = 8;
    pub(in super::super) const NEEDS_RESET: u8 = 0x40;
    pub(in super::super) const FAILED: u8 = 0x80;
}

mod isr {
    pub(super) const QUEUE: u8 = 1;
    pub(super) const CONFIG: u8 = 2;
}

/// A reset is under way. No bit of the status that the driver reads.
const RESETTING: u16 = 1 << 8;
/// `VIRTIO_MSI_NO_VECTOR`.
const NO_VECTOR: u16 = 0xffff;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::{Link, status};

    #[test]
    fn a_driver_that_reads_that_the_reset_is_done_can_write_at_once() {
        for _ in 0..1000 {
            let link = Link::new(1).unwrap();
            link.add_status(status::DRIVER_OK);
            link.reset(true);
            assert_eq!(link.status(), status::DRIVER_OK);
            assert!(link.is_resetting());
            thread::scope(|scope| {
                scope.spawn(|| link.reset_done());
                while link.status() != 0 {
                    thread::yield_now();
                }
                assert!(!link.is_resetting());
            });
        }
    }
}
