//! Gives the host the pages that a guest does not use.

use std::{io, sync::Arc};

use ec2vmm_devices::{Memory, virtio::balloon::Reclaim};
use vm_memory::GuestAddress;

use crate::memory;

/// By `madvise(MADV_DONTNEED)`: the pages leave this process at once, and come back as zeroes.
#[derive(Debug)]
pub struct Madvise {
    memory: Arc<Memory>,
}

impl Madvise {
    /// For this memory.
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory }
    }
}

impl Reclaim for Madvise {
    fn discard(&self, address: GuestAddress, len: u64) -> io::Result<()> {
        memory::discard(&self.memory, address, len)
    }
}
