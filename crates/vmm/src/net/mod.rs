//! What stands behind virtio-net: a tap.

mod tap;
#[cfg(test)]
mod tests;

use std::{fs::File, io, os::fd::OwnedFd};

use ec2vmm_devices::virtio::{
    VirtioDevice,
    net::{Net, Options},
};

pub use self::tap::Tap;

/// A network card plugged into a tap made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
///
/// # Errors
/// It is no such tap, or the host is out of descriptors.
pub fn device(tap: OwnedFd, mac: [u8; 6]) -> io::Result<Box<dyn VirtioDevice>> {
    let tap = Tap::new(File::from(tap))?;
    Ok(Box::new(Net::new(tap, &Options { mac, mtu: None })?))
}
