//! Emulated hardware: a PCI bus, virtio devices on it, a serial port, a clock, a panic device.
//!
//! A device is a plain struct, generic over its effects. This crate never sees KVM, never knows who
//! delivers an interrupt or who calls it, opens nothing, and holds no unsafe code. A guest's mistake
//! is a value ([`virtio::GuestFault`]), never a panic.

pub mod console;
pub mod pci;
pub mod pvpanic;
pub mod rtc;
pub mod serial;
pub mod state;
pub mod virtio;

/// Guest memory, as every crate of the monitor sees it.
pub type Memory = vm_memory::GuestMemoryMmap<()>;
