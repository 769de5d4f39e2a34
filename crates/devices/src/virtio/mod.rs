//! virtio 1.2: devices and the queues that they serve.

pub mod config_space;
pub mod device;
pub mod queue;

pub use config_space::ConfigSpace;
pub use device::{Identity, VirtioDevice, Wake};
pub use queue::{GuestFault, Interrupt, VirtQueue};
