//! The operations that people ask for, and the reconcilers that keep them true.
//!
//! An operation checks everything first, records the intent in one transaction, answers, and wakes the
//! reconciler of each instance that it touched. It decides; effects are the host's, wire formats are not
//! known here, and no clock but [`Clock`] is read.

mod addresses;
mod admission;
mod adopt;
mod alive;
pub mod clock;
mod cloud;
pub mod config;
pub mod console;
pub mod cost;
pub mod credits;
pub mod error;
pub mod events;
pub mod filters;
mod ids;
pub mod images;
pub mod instances;
pub mod key_material;
pub mod key_pairs;
mod network;
mod news;
pub mod page;
mod reconcile;
mod record;
mod sweep;
pub mod tags;
mod tasks;
mod tokens;
pub mod types;
pub mod volumes;

pub use clock::{Clock, SystemClock};
pub use cloud::{Cloud, Figures};
pub use config::Config;
pub use error::Error;

/// Random bits, such as for an id.
fn random() -> u128 {
    let bits = uuid::Uuid::new_v4().as_u128();
    // A UUID has six bits that are always the same: they are mixed with others that are not.
    bits ^ bits.rotate_left(61)
}
