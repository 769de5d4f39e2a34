//! The contract of a machine process, `ec2vmm-vmm`: what it is given at birth ([`MachineConfig`]),
//! how it is shut in ([`Sandbox`]), what it reports while it lives ([`Event`]), what its control socket answers ([`control`]), what it leaves
//! of its console ([`console_log`]), and what its exit status means ([`Exit`]).
//!
//! Plain serde types. This crate never acts: no descriptor is opened, no file read here.

pub mod config;
pub mod console_log;
pub mod control;
pub mod event;
pub mod exit;
pub mod sandbox;

pub use config::MachineConfig;
pub use event::Event;
pub use exit::{Exit, Failure, FailureKind};
pub use sandbox::{Sandbox, SandboxKind};

/// Version of everything in this crate. A machine process refuses a configuration of another version.
pub const VERSION: u32 = 1;
