//! What vCPU threads and those of snapshots tell the event loop.

use std::{
    io,
    sync::{Arc, mpsc},
};

use ec2vmm_devices::virtio::VirtQueue;
use ec2vmm_vmm_api::Failure;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{slots::SlotId, vcpu::VcpuEnd};

/// One piece of news. A guest can make each of them only once before the loop answers, so that
/// however fast it goes, they do not pile up; and the loop hears so many at a time, so that a guest whose
/// processors never stop making them cannot keep it from all else.
pub enum Notice {
    /// The driver of the device in this slot is ready.
    Activate {
        /// Which device.
        slot: SlotId,
        /// Negotiated features.
        features: u64,
        /// Its queues.
        queues: Vec<VirtQueue>,
    },
    /// The driver of the device in this slot wants it as born.
    ResetDevice {
        /// Which device.
        slot: SlotId,
    },
    /// The guest has let go of a device, as it was asked to. It is off the bus.
    Ejected {
        /// Its place on PCI bus 0.
        pci_device: u8,
    },
    /// The guest's kernel has panicked.
    Panicked,
    /// Guest memory cannot be brought in any more: who waits for a page of it waits for ever.
    MemoryLost {
        /// Why.
        failure: Failure,
    },
    /// The files of the snapshot that is underway are written, or cannot be.
    SnapshotWritten,
    /// A vCPU thread has ended.
    VcpuEnded {
        /// Why.
        end: VcpuEnd,
    },
}

/// The sending end, one for each sender.
#[derive(Clone)]
pub struct Sender {
    notices: mpsc::Sender<Notice>,
    bell: Arc<EventFd>,
}

impl Sender {
    /// Tells the loop. Once the loop is gone there is nobody to tell.
    pub fn send(&self, notice: Notice) {
        if self.notices.send(notice).is_ok()
            && let Err(error) = self.bell.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            log::error!("waking the event loop: {error}");
        }
    }
}

/// The receiving end.
pub struct Mailbox {
    notices: mpsc::Receiver<Notice>,
    sender: Sender,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new() -> io::Result<Self> {
        let (notices, receiver) = mpsc::channel();
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(Self { notices: receiver, sender: Sender { notices, bell } })
    }

    /// For those who have something to tell.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Readable when there is news.
    pub fn bell(&self) -> &EventFd {
        &self.sender.bell
    }

    /// What has come, oldest first. The bell rings again for what is left.
    pub fn hear(&self) -> Vec<Notice> {
        // Emptied first: what comes in later rings again.
        let _ = self.bell().read();
        let heard: Vec<_> = std::iter::from_fn(|| self.take()).take(NOTICES_PER_TURN).collect();
        if heard.len() == NOTICES_PER_TURN {
            // The only failure is a bell that rings already.
            let _ = self.bell().write(1);
        }
        heard
    }

    /// The next notice, if there is one.
    pub fn take(&self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }
}

/// Of more than a machine has vCPUs and devices, so that a guest that behaves is heard at once.
const NOTICES_PER_TURN: usize = 128;

#[cfg(test)]
mod tests {
    use super::{Mailbox, NOTICES_PER_TURN, Notice, SlotId};

    #[test]
    fn the_bell_rings_until_all_is_heard() {
        let mailbox = Mailbox::new().unwrap();
        assert!(mailbox.hear().is_empty());
        let last = u32::try_from(NOTICES_PER_TURN).unwrap();
        for slot in 0..=last {
            mailbox.sender().send(Notice::ResetDevice { slot: SlotId(slot) });
        }
        let slots = |notices: Vec<Notice>| -> Vec<u32> {
            let slot = |notice| if let Notice::ResetDevice { slot } = notice { slot.0 } else { u32::MAX };
            notices.into_iter().map(slot).collect()
        };
        assert!(slots(mailbox.hear()).into_iter().eq(0..last));
        assert!(mailbox.bell().read().is_ok());
        assert_eq!(slots(mailbox.hear()), [last]);
        assert!(mailbox.bell().read().is_err());
    }
}
