//! Gives the host the pages that a guest does not use.

use std::{io, sync::Arc};

use ec2vmm_devices::{Memory, virtio::balloon::Reclaim};
use vm_memory::GuestAddress;

use crate::{memory, snapshot::Discards};

/// By `madvise(MADV_DONTNEED)`: the pages leave this process at once, and come back as zeroes.
#[derive(Debug)]
pub struct Madvise {
    memory: Arc<Memory>,
    /// Where pages are still to come out of a snapshot.
    discards: Option<Discards>,
}

impl Madvise {
    /// For this memory.
    pub(crate) fn new(memory: Arc<Memory>, discards: Option<Discards>) -> Self {
        Self { memory, discards }
    }
}

impl Reclaim for Madvise {
    fn discard(&self, address: GuestAddress, len: u64) -> io::Result<()> {
        let discard = || memory::discard(&self.memory, address, len);
        match &self.discards {
            None => discard(),
            Some(discards) => discards.discard(memory::ram_pages(&self.memory, address, len)?, discard),
        }
    }
}
