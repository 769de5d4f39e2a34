//! What EC2's nouns are and may become: instances and their lifecycle, instance types, images, volumes,
//! key pairs, prices and the ledger of use.
//!
//! Pure data and decisions. This crate never does IO, never reads a clock, is never async.

pub mod cost;
pub mod credits;
pub mod ids;
pub mod images;
pub mod instance_types;
pub mod instances;
pub mod key_pairs;
pub mod ledger;
pub mod lifecycle;
pub mod networks;
pub mod plan;
pub mod prices;
pub mod reasons;
#[cfg(test)]
mod samples;
pub mod tags;
pub mod time;
pub mod transitions;
pub mod volumes;

pub use instance_types::{Arch, InstanceType};
pub use instances::Instance;
pub use time::Time;
