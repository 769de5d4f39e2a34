//! The contract of the REST control socket: plain serde types.
//!
//! Types only: nothing here acts.
