//! The life of an instance. Pure: no clock, no IO; the arrows below are the whole truth, and a test prints
//! them as two complete tables.
//!
//!   Pending ─Started→ Running ─stop→ Stopping ─Ended→ Stopped ─start→ Pending
//!   Running ─Ended→ Stopped, by the guest's power-off, or by a fault
//!   Pending, Running, Stopping, Stopped ─terminate→ ShuttingDown ─Cleared→ Terminated
//!
//! A first launch that fails is terminated; an instance that has run before returns to Stopped. A
//! power-off from inside terminates where the instance says so.
//!
//! States and codes: EC2 API Reference, `InstanceState`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::instances::GuestShutdown;

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

impl State {
    /// Every state, in the order of EC2's codes.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Running, Self::ShuttingDown, Self::Terminated, Self::Stopping, Self::Stopped];

    /// EC2's code: the low byte of `InstanceState.code`.
    pub fn code(self) -> u8 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
            Self::Stopping => 64,
            Self::Stopped => 80,
        }
    }

    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// It takes processors and memory of the host, or is about to.
    pub fn occupies_host(self) -> bool {
        match self {
            Self::Pending | Self::Running | Self::Stopping | Self::ShuttingDown => true,
            Self::Stopped | Self::Terminated => false,
        }
    }

    /// It is on its way to another state without anybody asking for more.
    pub fn is_passing(self) -> bool {
        match self {
            Self::Pending | Self::Stopping | Self::ShuttingDown => true,
            Self::Running | Self::Stopped | Self::Terminated => false,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What people ask.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Request {
    /// `StartInstances`.
    Start,
    /// `StopInstances`: the guest is asked first.
    Stop,
    /// `StopInstances` with `Force` or `SkipOsShutdown`: the power is cut.
    ForceStop,
    /// `RebootInstances`.
    Reboot,
    /// `TerminateInstances`: the guest is asked first.
    Terminate,
    /// `TerminateInstances` with `Force` or `SkipOsShutdown`: the power is cut.
    ForceTerminate,
}

impl Request {
    /// Every request.
    pub const ALL: [Self; 6] =
        [Self::Start, Self::Stop, Self::ForceStop, Self::Reboot, Self::Terminate, Self::ForceTerminate];
}

/// What a request comes to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// The instance is in this state from now on; a machine follows. The state may be the one that it is in
    /// already: a reboot, or a stop that shall not ask the guest any more.
    Become(State),
    /// What was asked for is so already, or on its way: success, and nothing to do.
    AlreadySo,
    /// `IncorrectInstanceState`.
    Refuse,
}

/// What a request comes to. Every pair is spelled out, so that a new state will not compile unanswered.
pub fn decide(now: State, request: Request) -> Verdict {
    use Request::{ForceStop, ForceTerminate, Reboot, Start, Stop, Terminate};
    use State::{Pending, Running, ShuttingDown, Stopped, Stopping, Terminated};
    use Verdict::{AlreadySo, Become, Refuse};
    match (now, request) {
        (Stopped, Start) => Become(Pending),
        (Pending | Running, Start) => AlreadySo,
        (Stopping | ShuttingDown | Terminated, Start) => Refuse,

        (Running, Stop | ForceStop) | (Stopping, ForceStop) => Become(Stopping),
        (Stopping, Stop) | (Stopped, Stop | ForceStop) => AlreadySo,
        (Pending | ShuttingDown | Terminated, Stop | ForceStop) => Refuse,

        (Running, Reboot) => Become(Running),
        (Pending | Stopping | Stopped | ShuttingDown | Terminated, Reboot) => Refuse,

        (Pending | Running | Stopping | Stopped, Terminate | ForceTerminate)
        | (ShuttingDown, ForceTerminate) => Become(ShuttingDown),
        (ShuttingDown, Terminate) | (Terminated, Terminate | ForceTerminate) => AlreadySo,
    }
}

/// What became of an instance's machine.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// It is about to execute its first instruction.
    Started,
    /// It cannot be started. Final: what may be tried again was.
    StartFailed(StartFailure),
    /// It was reset in place and boots again.
    Rebooted,
    /// It has ended.
    Ended(End),
    /// Nothing of it is left on the host.
    Cleared,
}

/// Why a machine cannot be started.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StartFailure {
    /// Whose fault.
    pub fault: Fault,
    /// What and where, for people.
    pub detail: String,
}

/// Whose fault a failed start is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The host has no room: `Server.InsufficientInstanceCapacity`. Never tried again: so it is with EC2.
    NoRoom,
    /// The image cannot be booted: `Client.InternalError`. Never tried again: it will not mend itself.
    Image,
    /// Anything else of the host: `Server.InternalError`. Tried again a few times.
    Host,
}

/// How a machine ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The guest powered itself off, or its power was cut on request.
    PoweredOff,
    /// The guest or its processor failed: a panic, a triple fault, an error of KVM.
    Failed {
        /// What happened, for people.
        detail: String,
    },
    /// The process was killed and said nothing.
    Killed,
    /// There is no trace of it: the host was restarted.
    Vanished,
}

/// What else decides what news makes of a state.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Circumstances {
    /// It has never been running.
    pub first_launch: bool,
    /// What a power-off from inside means.
    pub on_guest_shutdown: GuestShutdown,
    /// What the loss of the host means.
    pub after_loss: AfterLoss,
}

/// What becomes of instances that were running when the host went down.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterLoss {
    /// They are stopped.
    #[default]
    Stop,
    /// They are started again.
    StartAgain,
}

/// What news makes of a state. Total: news is never refused, it may only come too late to matter.
pub fn hear(now: State, news: &News, circumstances: Circumstances) -> State {
    use State::{Pending, Running, ShuttingDown, Stopped, Stopping, Terminated};
    match (now, news) {
        (Pending, News::Started) => Running,
        (Pending, News::StartFailed(_)) if circumstances.first_launch => ShuttingDown,
        (Pending, News::StartFailed(_)) => Stopped,
        // Nobody has seen it run; it shall.
        (Pending, News::Ended(End::Killed | End::Vanished)) => Pending,

        (Running, News::Ended(End::Vanished)) => match circumstances.after_loss {
            AfterLoss::Stop => Stopped,
            AfterLoss::StartAgain => Pending,
        },
        (Running, News::Ended(End::Killed)) => Stopped,

        // Also where it ran for so short a time that nobody saw it.
        (Pending | Running, News::Ended(End::PoweredOff)) => match circumstances.on_guest_shutdown {
            GuestShutdown::Stop => Stopped,
            GuestShutdown::Terminate => ShuttingDown,
        },
        (Pending | Running, News::Ended(End::Failed { .. })) => Stopped,

        // However it ended: that is what was asked for.
        (Stopping, News::Ended(_)) => Stopped,
        (ShuttingDown, News::Cleared) => Terminated,

        (Pending, News::Rebooted | News::Cleared) => Pending,
        (Running, News::Started | News::StartFailed(_) | News::Rebooted | News::Cleared) => Running,
        (Stopping, News::Started | News::StartFailed(_) | News::Rebooted | News::Cleared) => Stopping,
        (ShuttingDown, News::Started | News::StartFailed(_) | News::Rebooted | News::Ended(_)) => {
            ShuttingDown
        }
        (Stopped, News::Started | News::StartFailed(_) | News::Rebooted | News::Ended(_) | News::Cleared) => {
            Stopped
        }
        (
            Terminated,
            News::Started | News::StartFailed(_) | News::Rebooted | News::Ended(_) | News::Cleared,
        ) => Terminated,
    }
}

#[cfg(test)]
mod tests;
