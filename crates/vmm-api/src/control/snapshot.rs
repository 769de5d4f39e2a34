//! Snapshots of a machine.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A snapshot to take. With the request come two descriptors, both of regular files that are open for reading
/// and writing: the state's, and the memory's, in which there can be holes. What they held is lost.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// How much of the memory is written.
    #[serde(default)]
    pub kind: SnapshotKind,
    /// From here on, note which pages change, so that the next one can be a difference to this one. It costs
    /// the guest an exit for each page that it writes, once after each snapshot.
    #[serde(default)]
    pub track: bool,
}

/// How much of the memory is written.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// All pages that are not zero.
    #[default]
    Full,
    /// Pages that have changed since the snapshot before, which was taken with `track`.
    Difference,
}

/// Which pages a restored machine has touched is written into the file that it was given for that, and no more is
/// noted.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WorkingSet {
    /// How many pages of 4 KiB are in it.
    pub pages: u64,
}

/// A snapshot that was taken.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SnapshotTaken {
    /// Its name, which both files bear.
    pub id: Uuid,
    /// That of the snapshot that it is a difference to.
    pub parent: Option<Uuid>,
    /// Bytes of guest memory that were written.
    pub memory_bytes: u64,
    /// How long the guest stood still for it, microseconds.
    pub us: u64,
}
