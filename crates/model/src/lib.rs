//! What EC2's nouns are and may become: so far, the instance types.
//!
//! Pure data and decisions. This crate never does IO, never reads a clock, is never async.

pub mod instance_types;

pub use instance_types::InstanceType;
