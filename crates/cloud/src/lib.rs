//! The operations that people ask for, and the reconcilers that keep them true.
//!
//! An operation checks everything first, records the intent in one transaction, answers, and wakes the
//! reconciler of each instance that it touched. It decides; effects are the host's, wire formats are not
//! known here, and no clock but [`Clock`] is read.

mod addresses;
mod admission;
mod adopt;
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
/// Stands in until the folder of this name is there.
mod key_material {
    use ec2vmm_model::key_pairs::KeyKind;
    pub(crate) struct Made {
        pub(crate) fingerprint: String,
        pub(crate) public_key: String,
        pub(crate) private_key: String,
    }
    pub(crate) struct Read {
        pub(crate) kind: KeyKind,
        pub(crate) fingerprint: String,
        pub(crate) public_key: String,
    }
    pub(crate) fn create(
        _: KeyKind,
        _: Option<u16>,
        _: crate::key_pairs::PrivateFormat,
        _: &str,
    ) -> Result<Made, crate::Error> {
        Err(crate::Error::Unavailable)
    }
    pub(crate) fn import(_: &str) -> Result<Read, crate::Error> {
        Err(crate::Error::Unavailable)
    }
}
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
