//! An interrupt line of the IOAPIC, as devices trigger it.

use std::{io, sync::Arc};

use vm_superio::Trigger;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An edge-triggered line. It leads nowhere until its [eventfd](Self::eventfd) is given to KVM.
#[derive(Clone, Debug)]
pub struct Line(Arc<EventFd>);

impl Line {
    /// A line that leads nowhere yet.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::new(EFD_NONBLOCK)?)))
    }

    /// What KVM reads.
    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }
}

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}
