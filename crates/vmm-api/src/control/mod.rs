//! The control socket: HTTP/1.1 and JSON on a Unix stream socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /machine` | | [`Machine`] |
//! | `GET /metrics` | | [`Metrics`] |
//! | `GET /events` | | [`crate::Event`]s, one a line (`application/x-ndjson`): the last [`EVENTS_KEPT`], then each as it happens, to the end of the machine |
//! | `PUT /machine/power` | [`PowerRequest`] | 204, at once; the guest takes its time |
//! | `PUT /machine/pause` | | 204, once the machine stands still |
//! | `PUT /machine/resume` | | 204; it goes on |
//! | `POST /machine/snapshot` | [`SnapshotRequest`], two descriptors | [`SnapshotTaken`], once both files are written; a machine that ran goes on |
//! | `PUT /machine/working-set` | | [`WorkingSet`]: the pages touched since the restore are written down |
//! | `GET /machine/disks`, `GET /machine/disks/ID` | | [`Disks`], [`Disk`] |
//! | `POST /machine/disks` | [`AttachDisk`], descriptors | [`Disk`]: the guest has been told |
//! | `DELETE /machine/disks/ID` | | 202: the guest has been asked; `detached` is the event when it has let go |
//! | `DELETE /machine/disks/ID?force=true` | | 204: gone, whatever the guest says |
//! | `PUT /machine/disks/ID/size` | [`ResizeDisk`] | [`Disk`]: the guest has been told |
//! | `PUT /machine/disks/ID/limit` | [`crate::config::RateLimit`] | [`Disk`] |
//! | `PUT /machine/nets/ID/limits` | [`NetLimits`] | [`Net`] |
//! | `GET`, `POST`, `DELETE /machine/nets...` | [`AttachNet`], a descriptor | likewise: [`Nets`], [`Net`] |
//! | `GET /machine/balloon` | | [`Balloon`] |
//! | `PUT /machine/balloon` | [`SetBalloon`] | [`Balloon`]; the guest takes its time |
//!
//! A machine that is paused executes no instruction, its devices touch nothing of its memory, and what comes
//! from outside waits. Its clock goes on: it finds that time has passed. To pause one that is paused changes
//! nothing, nor to resume one that runs. A reset ends the pause.
//!
//! So does one whose snapshot is being written, which says that it is `snapshotting`. It answers what it is asked
//! meanwhile; what would change it is refused with 409. Only `power_off` is heard, and ends it at once: the snapshot
//! is given up, and its files are none. A client that goes away does not stop its snapshot.
//!
//! Devices come and go only while the machine runs. One that was attached stays through a reboot; one that the
//! guest was asked for goes with the reboot at the latest.
//!
//! Errors are [`Problem`] with a 4xx or 5xx status: what was refused has changed nothing.

mod balloon;
mod devices;
#[cfg(feature = "openapi")]
pub mod openapi;
mod snapshot;

use std::collections::BTreeMap;

pub use self::{
    balloon::{Balloon, SetBalloon},
    devices::{
        AttachDisk, AttachNet, Disk, Disks, ID_BYTES_MAX, LAYERS_MAX, Net, NetLimits, Nets, ResizeDisk,
    },
    snapshot::{SnapshotKind, SnapshotRequest, SnapshotTaken, WorkingSet},
};
use serde::{Deserialize, Serialize};

use crate::config::Identity;

/// What a machine is and does.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Machine {
    /// As configured.
    pub identity: Identity,
    /// The machine process.
    pub pid: u32,
    /// As configured.
    pub cpus: u8,
    /// As configured.
    pub memory_mib: u64,
    /// What it does now.
    pub state: State,
    /// Reboots in place since the process started.
    pub reboots: u64,
    /// Milliseconds since the process started.
    pub uptime_ms: u64,
    /// What was booted: where it was found, and the kernel's command line.
    pub booted: Booted,
}

/// What a machine does now.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Memory and devices are made, the kernel is read.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs and devices stand still until it is resumed.
    Paused,
    /// They stand still until a snapshot is written, and then run again, or are paused if they were.
    Snapshotting,
    /// Between a reset and the next run.
    Rebooting,
    /// The end has come; the process is about to exit.
    Ending,
}

/// What was booted.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Booted {
    /// The kernel's path on the disk, or `given` for one that was handed in.
    pub kernel: String,
    /// The initrd's path on the disk, `given`, or nothing.
    pub initrd: Option<String>,
    /// The whole command line.
    pub cmdline: String,
}

/// Counters since the process started, by device (`vcpu`, `block0`, `net0`, `vsock`, ...) and name.
/// Names end in their unit (`_bytes`, `_us`) or count events.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Metrics {
    /// Device, counter, value.
    pub devices: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What to do with the power.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PowerRequest {
    /// What to do.
    pub action: PowerAction,
    /// With `reboot` only: how long the guest may take, milliseconds in which the machine is not paused; 0 resets it
    /// at once. Four minutes where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

impl PowerRequest {
    /// Asks the guest to reboot, and resets it when it takes longer than `grace_ms`.
    pub fn reboot(grace_ms: u64) -> Self {
        Self { action: PowerAction::Reboot, grace_ms: Some(grace_ms) }
    }
}

impl From<PowerAction> for PowerRequest {
    fn from(action: PowerAction) -> Self {
        Self { action, grace_ms: None }
    }
}

/// What to do with the power.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// Press the ACPI power button: the guest shuts down in its own way, or not at all. One that was asked to
    /// reboot is not any more.
    PowerButton,
    /// Ask the guest to shut down, by its power button every 5 s, and reset it where it would power off, or when
    /// it takes too long. Asked again meanwhile, it has no more time than before.
    Reboot,
    /// Reset at once, as a reset button does.
    Reset,
    /// Cut the power at once.
    PowerOff,
}

/// How long a guest that is asked to reboot may take where nothing is said, milliseconds: after "a few minutes"
/// EC2 resets it (`RebootInstances`).
pub const REBOOT_GRACE_MS: u64 = 4 * 60 * 1000;
/// How many events `GET /events` begins with, at most.
pub const EVENTS_KEPT: usize = 32;

/// Why a request failed.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// One line: what and where.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}
