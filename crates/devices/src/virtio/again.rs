//! A device that stops before it is done, so that the rest of the machine gets its turn, and goes on
//! when the loop comes round again. A driver that never stops adding buffers thus hangs nobody.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A descriptor by which a device (or a handle to it) wakes it. One of [`super::VirtioDevice::sources`].
#[derive(Debug)]
pub struct Again(EventFd);

impl Again {
    /// A new one, silent.
    ///
    /// # Errors
    /// The host is out of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// Wake the device with the [`super::Wake::Source`] that this is.
    pub fn call(&self) {
        // The only failure is a counter that is full: then the device is about to be woken anyway.
        let _ = self.0.write(1);
    }

    /// Takes the calls so far back. With an edge-triggered loop there is no need to.
    pub fn clear(&self) {
        // Fails when there was none.
        let _ = self.0.read();
    }
}

impl AsRawFd for Again {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
