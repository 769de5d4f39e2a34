//! The balloon: memory that the guest is asked to give back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the guest is asked for, and what it says. It says what it likes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Balloon {
    /// What the guest shall give back.
    pub target_bytes: u64,
    /// What it says that it has given back.
    pub actual_bytes: u64,
    /// How often the guest has given statistics since it started its driver. To ask for the balloon asks the
    /// guest for fresh ones: they are there when this has gone up.
    pub statistics_count: u64,
    /// How old the statistics are; none if there are none.
    pub statistics_age_ms: Option<u64>,
    /// What the guest last said of its memory, by name, such as `guest_free_bytes` (virtio 1.2 section
    /// 5.5.6.4).
    pub statistics: BTreeMap<String, u64>,
}

/// What the guest shall give back.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SetBalloon {
    /// A multiple of 4096, and less than the machine's memory. 0 gives the guest all of it.
    pub target_bytes: u64,
}
