//! What a virtio device is to the rest of the monitor.
//!
//! A device lives on the event loop's thread from birth to death and is called there alone, so it
//! holds no lock. The transport (`pci::virtio`), which vCPU threads call, never touches it: it knows
//! the device's [`Identity`] and shares its [`ConfigSpace`], and when the driver is ready it hands the
//! queues over to the loop.
//!
//! ```text
//!   (born) ──driver sets DRIVER_OK──► activate ──► wake* ──driver or machine resets──► reset ──► (as born)
//! ```

use std::{io, os::fd::RawFd, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{CommandError, ConfigSpace, DeviceAnswer, DeviceCommand, GuestFault, Position, VirtQueue};
use crate::state::BadState;

/// What the driver can learn before it negotiates. Never changes.
#[derive(Clone, Debug)]
pub struct Identity {
    /// virtio device id (virtio 1.2 section 5), such as 2 for block.
    pub device_type: u32,
    /// PCI class code, subclass and programming interface, as 0xCCSSPP.
    pub pci_class: u32,
    /// Feature bits offered beyond those of the transport and the queue (`VIRTIO_F_VERSION_1`,
    /// `RING_INDIRECT_DESC`, `RING_EVENT_IDX`), which the transport adds.
    pub features: u64,
    /// The size of each queue: powers of two, at most 1,024.
    pub queue_sizes: Vec<u16>,
    /// The device-specific configuration, shared with the transport.
    pub config: Arc<ConfigSpace>,
}

/// Why a device is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wake {
    /// The driver has put buffers into this queue.
    Queue(u16),
    /// The descriptor at this index of [`VirtioDevice::sources`] has become ready. Edge-triggered:
    /// what is left undone now is not reported again.
    Source(usize),
}

/// What a device remembers in a snapshot beside its queues and its configuration.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// A network card.
    Net {
        /// Pairs of queues that the driver uses.
        pairs: u16,
        /// The offloads that the driver has chosen since it was ready, if it has: bits of features (virtio 1.2
        /// section 5.1.6.5.6.1).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offloads: Option<u64>,
    },
}

/// A virtio device.
pub trait VirtioDevice: Send {
    /// What the driver can learn of it.
    fn identity(&self) -> Identity;

    /// Descriptors besides the queues' that the device wants to be woken by, registered
    /// edge-triggered for input and output from [`Self::activate`] until [`Self::reset`]. A device
    /// with a changing set of descriptors gives one epoll descriptor of its own.
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// The driver is ready: these features were negotiated, and these are the queues. A queue that
    /// the driver left out is there and [not ready](VirtQueue::is_ready). Every source is taken to be
    /// ready, and every queue to hold buffers: both are woken once after this call.
    ///
    /// # Errors
    /// What the driver asked for cannot be.
    fn activate(&mut self, features: u64, queues: Vec<VirtQueue>) -> Result<(), GuestFault>;

    /// Do what can be done now, without blocking.
    ///
    /// # Errors
    /// The driver broke the rules so badly that the queue is lost: the transport sets
    /// `DEVICE_NEEDS_RESET` and calls no more until the reset.
    fn wake(&mut self, wake: Wake) -> Result<(), GuestFault>;

    /// Finish what is under way: guest memory stays as it is from here to the next [`Self::wake`]. For a
    /// machine that is paused; may block as long as a disk takes.
    ///
    /// # Errors
    /// As of [`Self::wake`].
    fn quiesce(&mut self) -> Result<(), GuestFault> {
        Ok(())
    }

    /// As born: queues are dropped, requests under way are finished or forgotten so that none
    /// touches guest memory after this returns. Safe to call at any time.
    fn reset(&mut self);

    /// Brings all that was written into the file behind the device, whatever the driver has flushed. Nothing
    /// is under way. May block as long as a disk takes.
    ///
    /// # Errors
    /// What was written is not all there.
    fn write_back(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Where the device stands in each queue while nothing is under way; chains that it holds but has not used
    /// count as not taken. Empty for a device that is not at work.
    fn positions(&self) -> Vec<Position>;

    /// What else it has to remember, if anything.
    fn save(&self) -> Option<DeviceState> {
        None
    }

    /// As it was, after [`Self::activate`].
    ///
    /// # Errors
    /// It is another kind of device's, or cannot be here.
    fn restore(&mut self, saved: &DeviceState) -> Result<(), BadState> {
        let _ = saved;
        Err(BadState("it is another kind of device's"))
    }

    /// Do what the host asks, if this is a device for it. Called at any time, whether a driver is active
    /// or not; never blocks.
    ///
    /// # Errors
    /// It cannot be, and nothing has changed.
    fn command(&mut self, command: &DeviceCommand) -> Result<DeviceAnswer, CommandError> {
        let _ = command;
        Err(CommandError::Unsupported)
    }

    /// Counters by name, for `GET /metrics`.
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
