//! What stands behind virtio-net: a tap.

mod tap;
#[cfg(test)]
mod tests;

pub use self::tap::Tap;
