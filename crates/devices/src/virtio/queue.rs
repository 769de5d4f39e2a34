//! A virtqueue as a device sees it: chains of buffers to take, and chains to give back.

use std::sync::Arc;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use crate::Memory;

/// A chain of descriptors: iterate it, or take its `readable()`, `writable()`, `reader()`, `writer()`.
pub type Chain = DescriptorChain<Arc<Memory>>;

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

/// One virtqueue, from the driver's DRIVER_OK to its reset.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    memory: Arc<Memory>,
    interrupt: Arc<dyn Interrupt>,
}

impl VirtQueue {
    /// A queue that the driver has set up (or left out: then it is not ready).
    pub fn new(index: u16, queue: Queue, memory: Arc<Memory>, interrupt: Arc<dyn Interrupt>) -> Self {
        Self { index, queue, memory, interrupt }
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
        Ok(chains.next())
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
        self.queue.add_used(&*memory, head, written).map_err(|source| fault(self.index, source))
    }

    /// Interrupt the driver if it wants to hear of what was completed since the last call.
    ///
    /// # Errors
    /// The rings lie outside of memory.
    pub fn notify(&mut self) -> Result<(), GuestFault> {
        let memory = Arc::clone(&self.memory);
        if self.queue.needs_notification(&*memory).map_err(|source| fault(self.index, source))? {
            self.interrupt.used(self.index);
        }
        Ok(())
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

fn fault(queue: u16, source: virtio_queue::Error) -> GuestFault {
    GuestFault::Queue { queue, source }
}
