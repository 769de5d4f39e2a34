//! What happens, as a list and as a stream.

use ec2vmm_model::Time;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::InstanceState;

/// Something that happened. In a stream, `id:` is the sequence number, `event:` the kind, `data:` this.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Event {
    /// Counted up, with gaps, never used twice: what [`LAST_EVENT_ID_HEADER`] resumes from.
    pub sequence: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub time: Time,
    /// What kind.
    pub kind: EventKind,
    /// The instance that it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "i-0123456789abcdef0")]
    pub instance_id: Option<String>,
    /// The state before; only with `state-changed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub previous_state: Option<InstanceState>,
    /// The state since; only with `state-changed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub current_state: Option<InstanceState>,
    /// One line for people.
    pub message: String,
}

/// The kinds of events.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// An instance was launched.
    Launched,
    /// Its state changed.
    StateChanged,
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

impl EventKind {
    /// As it is written: in JSON, as `event:` of a stream, and for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Launched => "launched",
            Self::StateChanged => "state-changed",
            Self::RebootRequested => "reboot-requested",
            Self::Rebooted => "rebooted",
            Self::Panicked => "panicked",
            Self::Modified => "modified",
            Self::Throttled => "throttled",
            Self::StepFailed => "step-failed",
            Self::Adopted => "adopted",
            Self::MachineEnded => "machine-ended",
            Self::Swept => "swept",
        }
    }
}

/// Which events to list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, PartialEq, Serialize)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct EventQuery {
    /// Only what came after this sequence number. Without it, from the first that is remembered.
    #[param(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only what happened to this instance.
    #[param(pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// At most so many, 1 to 1,000. Without it, 1,000.
    #[param(minimum = 1, maximum = 1000, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_results: Option<u32>,
}

/// Which events to follow.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, PartialEq, Serialize)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct EventStreamQuery {
    /// First what came after this sequence number, as far as it is remembered. The header
    /// `Last-Event-ID` wins over it. Without either, only what happens from now on.
    #[param(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only what happens to this instance.
    #[param(pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
}

/// Events, oldest first.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct EventList {
    /// The events.
    pub events: Vec<Event>,
}

/// The header with which a stream goes on after the event of that sequence number.
pub const LAST_EVENT_ID_HEADER: &str = "last-event-id";
/// The most that one list holds.
pub const EVENTS_PAGE_MAX: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::EventKind;

    #[test]
    fn names_are_as_serde_writes_them() {
        for kind in [
            EventKind::Launched,
            EventKind::StateChanged,
            EventKind::RebootRequested,
            EventKind::Rebooted,
            EventKind::Panicked,
            EventKind::Modified,
            EventKind::Throttled,
            EventKind::StepFailed,
            EventKind::Adopted,
            EventKind::MachineEnded,
            EventKind::Swept,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
