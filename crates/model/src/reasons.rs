//! Why an instance is in its state, in EC2's words.

use serde::{Deserialize, Serialize};

/// EC2's `stateReason`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StateReason {
    /// Such as `Client.UserInitiatedShutdown`.
    pub code: String,
    /// Such as `Client.UserInitiatedShutdown: User initiated shutdown`.
    pub message: String,
}

/// EC2's `reason`, such as `User initiated (2026-11-22 10:33:13 GMT)`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct TransitionReason(pub String);
