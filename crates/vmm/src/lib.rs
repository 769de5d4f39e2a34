//! One process, one machine: memory, KVM, vCPUs, boot, ACPI, SMBIOS, control socket.
//!
//! It opens no path: all that it uses comes in as an open descriptor, named in a
//! [`ec2vmm_vmm_api::MachineConfig`]. No Tokio, no async; one event loop and a thread per vCPU.
#![allow(unsafe_code, reason = "KVM, mappings and inherited descriptors; each use says why it is sound")]

pub mod block;
pub mod boot_source;
pub mod builder;
pub mod bus;
pub mod clock;
pub mod console;
pub mod control;
pub mod entropy;
pub mod error;
pub mod event_loop;
pub mod gate;
pub mod inherited;
pub mod limits;
pub mod lines;
pub mod machine;
pub mod mailbox;
pub mod memory;
pub mod messages;
pub mod net;
pub mod outlet;
pub mod panic_device;
pub mod parts;
pub mod rate_limits;
pub mod reclaim;
pub mod report;
pub mod sandbox;
pub mod slots;
pub mod smbios;
pub mod snapshot;
pub mod userfault;
pub mod vcpu;
pub mod vm;
pub mod watch;
pub mod wiring;
pub mod x86_64;

pub use messages::{LOG_BYTES_MAX, log_to_stderr};
