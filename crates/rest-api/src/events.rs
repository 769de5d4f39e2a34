//! What happens, as a list and as a stream.

use ec2vmm_model::Time;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::InstanceState;

/// Something that happened. In a stream, `id:` is the sequence number, `event:` the kind, `data:` this.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Event {
    /// Counted up, never used twice: what [`LAST_EVENT_ID_HEADER`] resumes from.
    pub sequence: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub time: Time,
    /// What kind.
    pub kind: EventKind,
    /// What it happened to.
    #[schema(example = "i-0123456789abcdef0")]
    pub resource_id: String,
    /// The state that an instance is in since; only with `instance-state`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub state: Option<InstanceState>,
    /// One line for people.
    pub message: String,
}

/// The kinds of events.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// An instance is in another state.
    InstanceState,
    /// An instance was changed: its type, its protection, its tags.
    InstanceChanged,
    /// A step on the way was done, such as a volume made, or its machine was seen to reboot.
    InstanceStep,
    /// A step failed, and is tried again or given up.
    InstanceFault,
    /// An image was registered, changed or deregistered.
    Image,
    /// A key pair was made, imported, changed or deleted.
    KeyPair,
    /// A volume was made, attached, changed or deleted.
    Volume,
    /// The daemon started, or found and removed something that belonged to nobody.
    Daemon,
}

/// Which events to list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, PartialEq, Serialize)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct EventQuery {
    /// Only what came after this sequence number. Without it, the last ones.
    #[param(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only what happened to this resource.
    #[param(min_length = 1, max_length = 64, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
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
    /// Only what happens to this resource.
    #[param(min_length = 1, max_length = 64, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
}

/// Events, oldest first.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct EventList {
    /// The events.
    pub events: Vec<Event>,
    /// The newest sequence number that was looked at: where the next request goes on with `after`.
    pub last_sequence: u64,
    /// Events after `after` are no longer remembered.
    pub gap: bool,
}

/// The header with which a stream goes on after the event of that sequence number.
pub const LAST_EVENT_ID_HEADER: &str = "last-event-id";
/// The most that one list holds.
pub const EVENTS_PAGE_MAX: u32 = 1000;
