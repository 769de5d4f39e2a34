//! What happened: a bounded log of all, and of each instance how its last start went.

use ec2vmm_model::{Time, ids::InstanceId, lifecycle::State};
use serde::{Deserialize, Serialize};

/// Something that happened.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Event {
    /// Counted up: what comes later has a greater one. Some numbers are left out.
    pub sequence: u64,
    /// When.
    pub time: Time,
    /// To which instance.
    pub instance: Option<InstanceId>,
    /// What.
    pub kind: EventKind,
    /// In words, one line.
    pub message: String,
}

/// What happened.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum EventKind {
    /// An instance was launched.
    Launched,
    /// Its state changed.
    StateChanged {
        /// From.
        from: State,
        /// To.
        to: State,
    },
    /// A reboot was asked for.
    RebootRequested,
    /// It rebooted, by itself or on request.
    Rebooted,
    /// The guest's kernel panicked.
    Panicked,
    /// An attribute or tags were changed.
    Modified,
    /// Its processor time is limited, or no longer.
    Throttled,
    /// A step failed, and will be tried again.
    StepFailed,
    /// A later daemon found the machine running.
    Adopted,
    /// The machine ended, or was found gone.
    MachineEnded,
    /// Something on the host that belonged to nobody was removed.
    Swept,
}

/// How the last start of an instance went.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Timeline {
    /// Which.
    pub instance: InstanceId,
    /// Which of its starts.
    pub generation: u64,
    /// When it was asked for.
    pub requested: Time,
    /// The steps, in order.
    pub steps: Vec<TimelineStep>,
}

/// One step of a start.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TimelineStep {
    /// Such as `create volume`.
    pub name: String,
    /// From the request to the step's begin, microseconds.
    pub begin_us: u64,
    /// What it took, microseconds.
    pub took_us: u64,
}

/// Which events.
#[derive(Clone, Debug, Default)]
pub struct DescribeEvents {
    /// Of this instance.
    pub instance: Option<String>,
    /// After this one.
    pub after: Option<u64>,
    /// At most so many, the earliest first. Nothing: 1,000.
    pub max_results: Option<u32>,
}

impl crate::Cloud {
    /// Events of the past, the earliest first.
    pub async fn describe_events(&self, what: &DescribeEvents) -> Result<Vec<std::sync::Arc<Event>>, crate::Error> { todo!() }
    /// All events after one (nothing: from now on), as they come. Those that are forgotten already are left out.
    pub fn follow_events(&self, after: Option<u64>) -> EventStream { todo!() }
    /// How the last start of an instance went: nothing where it never got so far.
    pub async fn timeline(&self, id: &str) -> Result<Option<std::sync::Arc<Timeline>>, crate::Error> { todo!() }
}

/// Events as they come.
pub struct EventStream {}

impl EventStream {
    /// The next one; nothing once the cloud is shut down. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<std::sync::Arc<Event>> { todo!() }
}
