//! Connects a virtio function's transport with KVM and with the event loop.

use std::{io, sync::Arc};

use ec2vmm_devices::{
    pci::{Link, MsiMessage, Wiring},
    virtio::VirtQueue,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    mailbox::{Notice, Sender},
    slots::SlotId,
    vm::InterruptRoutes,
};

/// The wiring of the function in one slot, for one run of the machine.
pub struct KvmWiring {
    /// Which device on the event loop.
    pub slot: SlotId,
    /// Where doorbells are hung.
    pub vm: Arc<VmFd>,
    /// The eventfds of the vectors.
    pub link: Arc<Link>,
    /// Where interrupts lead.
    pub routes: Arc<InterruptRoutes>,
    /// The interrupt line of the first vector; the others follow.
    pub gsi_base: u32,
    /// A doorbell a queue.
    pub kicks: Vec<Arc<EventFd>>,
    /// Where the doorbells hang now.
    pub kicks_address: Option<u64>,
    /// The way to the event loop.
    pub news: Sender,
}

impl KvmWiring {
    fn doorbells(&self, base: u64) -> impl Iterator<Item = (&EventFd, IoEventAddress)> {
        let addresses = (base..).step_by(KICK_STRIDE);
        self.kicks.iter().zip(addresses).map(|(kick, address)| (&**kick, IoEventAddress::Mmio(address)))
    }
}

impl Wiring for KvmWiring {
    fn route(&mut self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        let gsi = self.gsi_base + u32::from(vector);
        let Some(eventfd) = self.link.eventfds().get(usize::from(vector)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        match message {
            Some(message) => {
                self.routes.set(gsi, message)?;
                self.routes.connect(eventfd, gsi)
            }
            None => self.routes.disconnect(eventfd, gsi),
        }
    }

    fn kicks_at(&mut self, address: Option<u64>) -> io::Result<()> {
        // Every doorbell is taken down, and as many hung as can be: one that fails leaves its kicks to
        // `kick`, and must not leave the others where they are no more.
        let mut result = Ok(());
        let old = std::mem::replace(&mut self.kicks_address, address);
        for (kick, address) in old.into_iter().flat_map(|base| self.doorbells(base)) {
            match self.vm.unregister_ioevent(kick, &address, NoDatamatch) {
                // It could not be hung in the first place.
                Err(errno) if errno.errno() == libc::ENOENT => {}
                unhung => result = result.and(unhung),
            }
        }
        for (kick, address) in address.into_iter().flat_map(|base| self.doorbells(base)) {
            result = result.and(self.vm.register_ioevent(kick, &address, NoDatamatch));
        }
        Ok(result?)
    }

    fn activate(&mut self, features: u64, queues: Vec<VirtQueue>) {
        self.news.send(Notice::Activate { slot: self.slot, features, queues });
    }

    fn reset(&mut self) {
        self.news.send(Notice::ResetDevice { slot: self.slot });
    }

    fn kick(&mut self, queue: u16) {
        if let Some(kick) = self.kicks.get(usize::from(queue)) {
            // The only failure is a full counter: then it has been rung.
            let _ = kick.write(1);
        }
    }
}

/// Bytes from one queue's doorbell to the next.
const KICK_STRIDE: usize = 4;
