//! What stands behind virtio-net: a tap, with a queue for each pair of the card's.

mod tap;
#[cfg(test)]
mod tests;

use std::{fs::File, io, os::fd::OwnedFd};

use ec2vmm_devices::virtio::{
    VirtioDevice,
    net::{Limiters, Net, Options},
};
use ec2vmm_vmm_api::config;

pub use self::tap::Tap;
use crate::rate_limits::limiter;

/// A network card plugged into the queues of a tap, made as [`config::Net::taps`] says.
///
/// # Errors
/// It is no such tap, or the host is out of descriptors.
pub fn device(taps: Vec<OwnedFd>, config: &config::Net) -> io::Result<Box<dyn VirtioDevice>> {
    let config::Net { taps: _, mac, mtu, receive_limit, transmit_limit } = *config;
    let taps = taps.into_iter().map(|tap| Tap::new(File::from(tap))).collect::<io::Result<_>>()?;
    let limiters = Limiters { receive: limiter(receive_limit)?, transmit: limiter(transmit_limit)? };
    Ok(Box::new(Net::new(taps, &Options { mac, mtu }, limiters)?))
}
