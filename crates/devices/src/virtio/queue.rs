//! A virtqueue as a device sees it: chains of buffers to take, and chains to give back.

use std::sync::{
    Arc,
    atomic::{Ordering, fence},
};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT, desc::split::Descriptor};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::Memory;

/// A chain of descriptors: iterate it, or those of its descriptors that are [readable](Self::readable) or
/// [writable](Self::writable).
///
/// Invariant: it ends, after one descriptor more than [`DESCRIPTORS_MAX`] at most, whether anybody looks
/// at them or not. A chain in an indirect table could be sixty times as long, for the price of one
/// descriptor, and the loop could not leave it before its end.
#[derive(Clone, Debug)]
pub struct Chain {
    descriptors: DescriptorChain<Arc<Memory>>,
    left: usize,
}

/// The most descriptors of one chain that a device serves: what the longest queue can hold. One that has
/// more yields one more, by which a device can tell.
pub const DESCRIPTORS_MAX: usize = 1024;

impl Chain {
    /// The number of its first descriptor, to give it back by.
    pub fn head_index(&self) -> u16 {
        self.descriptors.head_index()
    }

    /// Guest memory, in which its buffers are said to lie.
    pub fn memory(&self) -> &Memory {
        self.descriptors.memory()
    }

    /// The descriptors of what the device may read.
    pub fn readable(self) -> impl Iterator<Item = Descriptor> {
        self.filter(|descriptor| !descriptor.is_write_only())
    }

    /// The descriptors of what the device may write.
    pub fn writable(self) -> impl Iterator<Item = Descriptor> {
        self.filter(Descriptor::is_write_only)
    }
}

impl Iterator for Chain {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        self.left = self.left.checked_sub(1)?;
        self.descriptors.next()
    }
}

/// How the device gets the driver's attention. Called on the event loop's thread; never blocks.
pub trait Interrupt: Send + Sync {
    /// Buffers of this queue were used.
    fn used(&self, queue: u16);
    /// The configuration has changed.
    fn config_changed(&self);
}

/// The driver broke the rules of virtio. It hurts its own machine alone.
#[derive(Debug, thiserror::Error)]
pub enum GuestFault {
    /// The rings cannot be used: addresses outside of memory, indices out of range.
    #[error("queue {queue}")]
    Queue {
        /// Which queue.
        queue: u16,
        /// What is wrong with it.
        source: virtio_queue::Error,
    },
    /// What a chain holds makes no sense to the device.
    #[error("{0}")]
    Request(&'static str),
}

/// Where a device stands in a queue: what it takes and gives next, modulo 2^16.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Position {
    /// Index into the available ring.
    pub next_available: u16,
    /// Index into the used ring.
    pub next_used: u16,
}

/// One virtqueue, from the driver's DRIVER_OK to its reset.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    memory: Arc<Memory>,
    interrupt: Arc<dyn Interrupt>,
    /// Chains given back since the last [`Self::notify`].
    added: u16,
}

impl VirtQueue {
    /// A queue that the driver has set up (or left out: then it is not ready).
    pub fn new(index: u16, queue: Queue, memory: Arc<Memory>, interrupt: Arc<dyn Interrupt>) -> Self {
        Self { index, queue, memory, interrupt, added: 0 }
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Whether the driver has set it up.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// How many descriptors it holds.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Guest memory, in which the chains' buffers lie.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// For config changes, which belong to no queue.
    pub fn interrupt(&self) -> &Arc<dyn Interrupt> {
        &self.interrupt
    }

    /// Where the device stands, if the last `held` chains that it has taken were put back.
    pub fn position(&self, held: u16) -> Position {
        Position {
            next_available: self.queue.next_avail().wrapping_sub(held),
            next_used: self.queue.next_used(),
        }
    }

    /// The next chain, or none. A queue that is not ready has none.
    ///
    /// # Errors
    /// The available ring lies outside of memory or its index is impossible.
    pub fn pop(&mut self) -> Result<Option<Chain>, GuestFault> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let index = self.index;
        let mut chains = self.queue.iter(Arc::clone(&self.memory)).map_err(|source| fault(index, source))?;
        Ok(chains.next().map(|descriptors| Chain { descriptors, left: DESCRIPTORS_MAX + 1 }))
    }

    /// Put the chain that was popped last back, to be popped again.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Give a chain back, with `written` bytes of it filled. Call [`Self::notify`] after the last one.
    ///
    /// # Errors
    /// The used ring lies outside of memory or `head` is not one of its descriptors.
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), GuestFault> {
        let memory = Arc::clone(&self.memory);
        self.added = self.added.wrapping_add(1);
        self.queue.add_used(&*memory, head, written).map_err(|source| fault(self.index, source))
    }

    /// As [`Self::complete`] for several chains, at most as many as the queue holds, of which the driver
    /// sees all or none: the buffers of one frame (virtio 1.2 section 5.1.6.4).
    ///
    /// # Errors
    /// As [`Self::complete`].
    pub fn complete_together(&mut self, chains: &[(u16, u32)]) -> Result<(), GuestFault> {
        let Some((&(last, written), earlier)) = chains.split_last() else { return Ok(()) };
        let mut next = self.queue.next_used();
        for &(head, written) in earlier {
            let slot = u64::from(next % self.queue.size());
            let address = GuestAddress(self.queue.used_ring())
                .checked_add(RING_HEADER_LEN + slot * USED_LEN)
                .ok_or(fault(self.index, virtio_queue::Error::AddressOverflow))?;
            self.memory
                .write_obj([u32::from(head).to_le(), written.to_le()], address)
                .map_err(|source| fault(self.index, virtio_queue::Error::GuestMemory(source)))?;
            next = next.wrapping_add(1);
            self.added = self.added.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        // This moves the ring's index past all of them at once.
        self.complete(last, written)
    }

    /// Interrupt the driver if it wants to hear of what was completed since the last call.
    ///
    /// # Errors
    /// The rings lie outside of memory.
    pub fn notify(&mut self) -> Result<(), GuestFault> {
        let added = std::mem::take(&mut self.added);
        if added > 0 && self.is_notification_wanted(added)? {
            self.interrupt.used(self.index);
        }
        Ok(())
    }

    /// virtio 1.2 section 2.7.7.
    fn is_notification_wanted(&self, added: u16) -> Result<bool, GuestFault> {
        // What was put into the used ring must be visible before the driver's wish is read: it looks
        // at the ring again after it has changed its wish.
        fence(Ordering::SeqCst);
        let available = GuestAddress(self.queue.avail_ring());
        let load = |offset: u64| {
            let address = available.checked_add(offset).ok_or(virtio_queue::Error::AddressOverflow)?;
            let value = self.memory.load(address, Ordering::Relaxed);
            value.map(u16::from_le).map_err(virtio_queue::Error::GuestMemory)
        };
        let wish = |offset| load(offset).map_err(|source| fault(self.index, source));
        if !self.queue.event_idx_enabled() {
            return Ok(u32::from(wish(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = RING_HEADER_LEN + AVAILABLE_LEN * u64::from(self.queue.size());
        let used = self.queue.next_used();
        Ok(used.wrapping_sub(wish(event)?).wrapping_sub(1) < added)
    }

    /// Ask the driver not to kick while chains are popped anyway.
    ///
    /// # Errors
    /// The rings lie outside of memory.
    pub fn disable_kicks(&mut self) -> Result<(), GuestFault> {
        let memory = Arc::clone(&self.memory);
        self.queue.disable_notification(&*memory).map_err(|source| fault(self.index, source))
    }

    /// Ask the driver to kick again. True when chains came in meanwhile: pop them first.
    ///
    /// # Errors
    /// The rings lie outside of memory.
    pub fn enable_kicks(&mut self) -> Result<bool, GuestFault> {
        let memory = Arc::clone(&self.memory);
        self.queue.enable_notification(&*memory).map_err(|source| fault(self.index, source))
    }
}

// The layout of the rings (virtio 1.2 sections 2.7.6 and 2.7.8), bytes.
const RING_HEADER_LEN: u64 = 4;
const AVAILABLE_LEN: u64 = 2;
const USED_LEN: u64 = 8;

fn fault(queue: u16, source: virtio_queue::Error) -> GuestFault {
    GuestFault::Queue { queue, source }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use virtio_queue::QueueT;
    use vm_memory::{Bytes, GuestAddress};

    use super::{DESCRIPTORS_MAX, VirtQueue};
    use crate::virtio::{Interrupt, testing::Guest};

    fn queue(guest: &mut Guest, event_idx: bool, at: u16) -> VirtQueue {
        let mut queue = guest.ring(0).queue();
        queue.set_event_idx(event_idx);
        queue.set_next_used(at);
        let interrupts: std::sync::Arc<dyn Interrupt> = guest.interrupts.clone();
        VirtQueue::new(0, queue, guest.memory.clone(), interrupts)
    }

    #[test]
    fn chains_given_back_together_become_visible_together() {
        let mut guest = Guest::new(&[4]);
        let mut queue = queue(&mut guest, false, 0);
        queue.complete_together(&[(3, 10), (1, 20), (2, 30)]).unwrap();
        assert_eq!(guest.ring(0).used(), [(3, 10), (1, 20), (2, 30)]);
        queue.complete_together(&[]).unwrap();
        queue.complete_together(&[(0, 1), (1, 2)]).unwrap();
        assert_eq!(guest.ring(0).used(), [(0, 1), (1, 2)], "around the end of the ring");
        assert!(queue.complete_together(&[(0, 1), (4, 2)]).is_err());
    }

    /// A table of one descriptor that follows itself, said to be as long as a table can be.
    #[test]
    fn a_chain_that_follows_itself_ends_for_whoever_looks_for_the_other_kind() {
        const NEXT: u16 = 1;
        const WRITABLE: u16 = 2;
        const INDIRECT: u16 = 4;
        for (flags, readable, writable) in
            [(NEXT, DESCRIPTORS_MAX + 1, 0), (NEXT | WRITABLE, 0, DESCRIPTORS_MAX + 1)]
        {
            let mut guest = Guest::new(&[4, 4]);
            let table = guest.ring(1).descriptors;
            guest.ring(1).write_descriptor(0, 0x1000, 1, flags, 0);
            guest.ring(0).write_descriptor(0, table, 16 * 0xffff, INDIRECT, 0);
            guest.ring(0).make_available(0);
            let chain = queue(&mut guest, false, 0).pop().unwrap().unwrap();
            assert_eq!(chain.clone().readable().count(), readable);
            assert_eq!(chain.clone().writable().count(), writable);
            assert_eq!(chain.count(), DESCRIPTORS_MAX + 1);
        }
    }

    #[test]
    fn the_driver_hears_of_what_it_asked_for() {
        for (event_idx, wish, expected) in
            [(false, 0, 1), (false, 1, 0), (true, 0xfffe, 1), (true, 0, 1), (true, 1, 0), (true, 0xfffd, 0)]
        {
            let mut guest = Guest::new(&[4]);
            let at = guest.ring(0).available + if event_idx { 4 + 2 * 4 } else { 0 };
            guest.memory.write_obj::<u16>(wish, GuestAddress(at)).unwrap();
            // Three chains: indices 0xfffe, 0xffff and 0.
            let mut queue = queue(&mut guest, event_idx, 0xfffe);
            queue.complete_together(&[(0, 1), (1, 1), (2, 1)]).unwrap();
            queue.notify().unwrap();
            queue.notify().unwrap();
            assert_eq!(guest.interrupts.of_queue(0), expected, "event_idx {event_idx}, wish {wish:#x}");
        }
    }
}
