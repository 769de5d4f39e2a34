//! Emulated hardware: a PCI bus, virtio devices on it, a serial port, a clock, a panic device.
//!
//! A device is a plain struct, generic over its effects. This crate never sees KVM, never knows who
//! delivers an interrupt or who calls it, opens nothing, and holds no unsafe code. A guest's mistake
//! is a value ([`virtio::GuestFault`]), never a panic.

pub mod console;
pub mod dirty;
pub mod pci;
pub mod pvpanic;
pub mod rate_limit;
pub mod rtc;
pub mod serial;
pub mod state;
pub mod time;
pub mod virtio;

/// Guest memory, as every crate of the monitor sees it.
pub type Memory = vm_memory::GuestMemoryMmap<dirty::DirtyLog>;

/// A piece of it.
pub type Slice<'a> = vm_memory::VolatileSlice<'a, dirty::DirtySlice<'a>>;
