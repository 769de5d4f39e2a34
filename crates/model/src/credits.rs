//! CPU credits of burstable types.

use serde::{Deserialize, Serialize};

/// How much processor time a machine may take.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Throttle {
    /// All of its vCPUs, all of the time.
    Full,
    /// A share of its vCPUs, thousandths of one processor: 200 for a fifth.
    Limited {
        /// Thousandths of one processor.
        millicpus: u32,
    },
}
