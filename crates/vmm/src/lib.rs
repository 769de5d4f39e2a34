//! One process, one machine: memory, KVM, vCPUs, boot, ACPI, SMBIOS, control socket.
//!
//! It opens no path: all that it uses comes in as an open descriptor, named in a
//! [`ec2vmm_vmm_api::MachineConfig`]. No Tokio, no async; one event loop and a thread per vCPU.

pub mod control;
pub mod smbios;
pub mod x86_64;
