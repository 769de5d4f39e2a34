//! Why an instance is in its state, in EC2's words. Where the host knows more, it comes after EC2's text.
//!
//! Codes: EC2 API Reference, `StateReason`.

use serde::{Deserialize, Serialize};

use crate::{
    lifecycle::{Fault, StartFailure},
    time::Time,
};

/// EC2's `stateReason`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StateReason {
    /// Such as `Client.UserInitiatedShutdown`.
    pub code: String,
    /// Such as `Client.UserInitiatedShutdown: User initiated shutdown`.
    pub message: String,
}

impl StateReason {
    /// It is on its way to running.
    pub fn pending() -> Self {
        Self { code: "pending".to_owned(), message: "pending".to_owned() }
    }

    /// Somebody stopped or terminated it.
    pub fn user_initiated_shutdown() -> Self {
        Self::new("Client.UserInitiatedShutdown", "User initiated shutdown", "")
    }

    /// The guest powered itself off.
    pub fn instance_initiated_shutdown() -> Self {
        Self::new("Client.InstanceInitiatedShutdown", "Instance initiated shutdown", "")
    }

    /// It could not be started.
    pub fn start_failed(failure: &StartFailure) -> Self {
        let (code, words) = match failure.fault {
            Fault::NoRoom => {
                ("Server.InsufficientInstanceCapacity", "Insufficient capacity to satisfy instance request")
            }
            Fault::Image => ("Client.InternalError", "Client error on launch"),
            Fault::Host => ("Server.InternalError", "Internal error on launch"),
        };
        Self::new(code, words, &failure.detail)
    }

    /// Its machine failed while it ran, such as by a kernel panic.
    pub fn failed(detail: &str) -> Self {
        Self::new("Server.InternalError", "The machine failed", detail)
    }

    /// Its machine process was killed while it ran.
    pub fn killed() -> Self {
        Self::new("Server.InternalError", "The machine was killed on the host", "")
    }

    /// The host went down under it.
    pub fn host_went_down() -> Self {
        Self::new("Server.InternalError", "The host was restarted while the instance was running", "")
    }

    fn new(code: &str, words: &str, detail: &str) -> Self {
        let mut message = format!("{code}: {words}");
        if !detail.is_empty() {
            message.push_str(": ");
            // One line, whatever a guest or a host's system made of it.
            let line = detail.chars().map(|c| if c.is_control() { ' ' } else { c });
            message.extend(line.take(DETAIL_CHARS_MAX));
        }
        Self { code: code.to_owned(), message }
    }
}

/// EC2's `reason`, such as `User initiated (2026-11-22 10:33:13 GMT)`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct TransitionReason(pub String);

impl TransitionReason {
    /// Somebody asked for it.
    pub fn user_initiated(when: Time) -> Self {
        Self(format!("User initiated ({})", when.gmt()))
    }
}

/// Long enough for a sentence, short enough for a table.
const DETAIL_CHARS_MAX: usize = 500;

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::{StateReason, TransitionReason};
    use crate::{
        lifecycle::{Fault, StartFailure},
        time::Time,
    };

    #[test]
    fn in_the_words_of_ec2() {
        let failed =
            |fault, detail: &str| StateReason::start_failed(&StartFailure { fault, detail: detail.into() });
        let reasons = [
            StateReason::pending(),
            StateReason::user_initiated_shutdown(),
            StateReason::instance_initiated_shutdown(),
            failed(Fault::NoRoom, ""),
            failed(Fault::Image, "no kernel on the disk"),
            failed(Fault::Host, "cannot open /dev/kvm:\nno such file"),
            StateReason::failed("the guest's kernel panicked"),
            StateReason::killed(),
            StateReason::host_went_down(),
        ];
        let lines: Vec<&str> = reasons.iter().map(|reason| reason.message.as_str()).collect();
        expect![[r#"
            pending
            Client.UserInitiatedShutdown: User initiated shutdown
            Client.InstanceInitiatedShutdown: Instance initiated shutdown
            Server.InsufficientInstanceCapacity: Insufficient capacity to satisfy instance request
            Client.InternalError: Client error on launch: no kernel on the disk
            Server.InternalError: Internal error on launch: cannot open /dev/kvm: no such file
            Server.InternalError: The machine failed: the guest's kernel panicked
            Server.InternalError: The machine was killed on the host
            Server.InternalError: The host was restarted while the instance was running"#]]
        .assert_eq(&lines.join("\n"));
        for reason in &reasons {
            assert!(reason.message.starts_with(&reason.code), "{reason:?}");
        }
        expect!["User initiated (2026-11-22 10:33:13 GMT)"]
            .assert_eq(&TransitionReason::user_initiated(Time::from_unix_ms(1_795_343_593_000)).0);
    }

    #[test]
    fn a_long_story_is_cut() {
        let reason = StateReason::failed(&"ä".repeat(1 << 20));
        assert!(reason.message.chars().count() < 600);
    }
}
