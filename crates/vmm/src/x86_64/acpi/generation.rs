//! The VM generation id (Microsoft, "Virtual Machine Generation ID"): 16 random bytes in memory that are
//! others each time that the machine goes on from a snapshot. A guest that is told of a new one knows that
//! there may be another that shares its past, and takes fresh random numbers: Linux from 5.18 on.

use std::io;

use ec2vmm_devices::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::{entropy, x86_64::layout};

/// One that there has never been.
///
/// # Errors
/// The host has no random numbers.
pub fn new() -> io::Result<[u8; 16]> {
    entropy::bytes()
}

/// Puts it where the guest looks.
///
/// # Errors
/// The memory is smaller than that.
pub fn write(generation: [u8; 16], memory: &Memory) -> Result<(), GuestMemoryError> {
    memory.write_slice(&generation, GuestAddress(layout::VM_GENERATION.start))
}

const _: () = assert!(layout::VM_GENERATION.end - layout::VM_GENERATION.start == 16);
