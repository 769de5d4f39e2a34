//! The host's random numbers, for the guest.

use std::io;

use ec2vmm_devices::virtio::rng::Entropy;
use rustix::rand::{GetRandomFlags, getrandom};

/// The kernel's generator.
#[derive(Clone, Copy, Debug)]
pub struct KernelEntropy;

impl Entropy for KernelEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = getrandom(&mut *rest, GetRandomFlags::empty())?;
            rest = rest.get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }
}

/// So many random bytes.
///
/// # Errors
/// There are none.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    KernelEntropy.fill(&mut bytes)?;
    Ok(bytes)
}
