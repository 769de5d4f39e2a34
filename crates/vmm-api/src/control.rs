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
//!
//! A machine that is paused executes no instruction, its devices touch nothing of its memory, and what comes
//! from outside waits. Its clock goes on: it finds that time has passed. To pause one that is paused changes
//! nothing, nor to resume one that runs. A reset ends the pause.
//!
//! Errors are [`Problem`] with a 4xx or 5xx status.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Identity;

/// What a machine is and does.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
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
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Memory and devices are made, the kernel is read.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs and devices stand still until it is resumed.
    Paused,
    /// Between a reset and the next run.
    Rebooting,
    /// The end has come; the process is about to exit.
    Ending,
}

/// What was booted.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
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
pub struct Metrics {
    /// Device, counter, value.
    pub devices: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What to do with the power.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PowerRequest {
    /// What to do.
    pub action: PowerAction,
}

/// What to do with the power.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// Press the ACPI power button: the guest shuts down in its own way, or not at all.
    PowerButton,
    /// Reset at once, as a reset button does.
    Reset,
    /// Cut the power at once.
    PowerOff,
}

/// How many events `GET /events` begins with, at most.
pub const EVENTS_KEPT: usize = 32;

/// Why a request failed.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// One line: what and where.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}
