//! virtio 1.2: devices and the queues that they serve.

pub mod again;
pub mod balloon;
pub mod block;
pub mod buffers;
pub mod command;
pub mod config_space;
pub mod device;
pub mod net;
pub mod queue;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vsock;

pub use again::Again;
pub use buffers::Buffers;
pub use command::{BalloonState, CommandError, DeviceAnswer, DeviceCommand};
pub use config_space::ConfigSpace;
pub use device::{DeviceState, Identity, VirtioDevice, Wake};
pub use queue::{GuestFault, Interrupt, Position, VirtQueue};
