//! The operations that people ask for, and the reconcilers that keep them true.
//!
//! An operation checks everything first, records the intent in one transaction, answers, and wakes the
//! reconciler of each instance that it touched. It decides; effects are the host's, wire formats are not
//! known here, and no clock but [`Clock`] is read.

pub mod clock;
mod cloud;
pub mod config;
pub mod console;
pub mod cost;
pub mod error;
pub mod events;
pub mod filters;
pub mod images;
pub mod instances;
pub mod key_pairs;
pub mod page;
pub mod tags;
pub mod types;
pub mod volumes;

pub use clock::{Clock, SystemClock};
pub use cloud::{Cloud, Figures};
pub use config::Config;
pub use error::Error;
