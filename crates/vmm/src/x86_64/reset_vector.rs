//! What a guest finds where a PC's firmware begins in real mode: a jump there is a reset.
//!
//! Linux takes a machine of hardware-reduced ACPI for one with EFI and asks EFI's services for a reset, not
//! the ACPI register. Without EFI that falls through to real mode at F000:FFF0 (`machine_real_restart` in
//! arch/x86/kernel/reboot.c).

use ec2vmm_devices::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{acpi::RESET_VALUE, layout};

/// Puts the code there.
///
/// # Errors
/// The memory is smaller than that.
pub fn write(memory: &Memory) -> Result<(), GuestMemoryError> {
    memory.write_slice(&CODE, GuestAddress(layout::RESET_VECTOR.start))
}

const CODE: [u8; 9] = {
    let [low, high] = layout::RESET_PORT.to_le_bytes();
    [
        0xba,
        low,
        high, // mov dx, RESET_PORT
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xee,        // out dx, al
        0xf4,        // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
};
const _: () = assert!(layout::RESET_VECTOR.end - layout::RESET_VECTOR.start >= CODE.len() as u64);
