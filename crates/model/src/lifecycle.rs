//! The life of an instance. Pure: no clock, no IO.
//!
//!   Pending ─Started→ Running ─stop→ Stopping ─Ended→ Stopped ─start→ Pending
//!   Pending, Running, Stopping, Stopped ─terminate→ ShuttingDown ─Ended→ Terminated

use serde::{Deserialize, Serialize};

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It shall run, and does not yet.
    Pending,
    /// It runs.
    Running,
    /// It shall never run again; something of it is still there.
    ShuttingDown,
    /// It is gone, and shown for an hour.
    Terminated,
    /// It shall stand still, and runs yet.
    Stopping,
    /// It stands still, and can be started.
    Stopped,
}

/// What people ask.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Request {
    /// `StartInstances`.
    Start,
    /// `StopInstances`.
    Stop,
    /// `RebootInstances`.
    Reboot,
    /// `TerminateInstances`.
    Terminate,
}

/// What a request comes to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// The instance is in this state from now on; a machine follows.
    Become(State),
    /// What was asked for is so already, or on its way: success, and nothing to do.
    AlreadySo,
    /// `IncorrectInstanceState`.
    Refuse,
}
