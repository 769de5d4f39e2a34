//! How a machine ended, from all that is known about it. Pure.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use ec2vmm_host::machine;
use ec2vmm_vmm_api::{Exit, Failure, FailureKind};

use super::events::End;
use crate::{error::Error, value::duration::Span};

/// How it ended, where nothing failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    /// The guest switched itself off, or somebody left.
    PowerOff,
    /// By a signal to the command.
    Signal(u8),
}

/// Why the machine had to end before it wanted to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Cause {
    Left,
    TimedOut,
    Signal(u8),
    OutputClosed,
}

/// What we did to it counts first, then whether its sandbox or control group has killed it, then what it told,
/// then how its process ended.
pub(crate) fn conclude(
    cause: Option<Cause>,
    killed: Option<Failure>,
    status: Option<ExitStatus>,
    told: Option<End>,
    timeout: Option<Span>,
) -> Result<Ending, Error> {
    if let (None, Some(failure)) = (cause, killed) {
        return Err(Error::Failed(failure));
    }
    match (cause, told) {
        (Some(Cause::Left), _) => Ok(Ending::PowerOff),
        (Some(Cause::Signal(signal)), _) => Ok(Ending::Signal(signal)),
        (Some(Cause::OutputClosed), _) => Err(Error::OutputClosed),
        (Some(Cause::TimedOut), _) => Err(timed_out(timeout)),
        (None, Some(End { failure: Some(failure), .. })) => Err(Error::Failed(failure)),
        (None, Some(End { exit: Exit::PowerOff, .. })) => Ok(Ending::PowerOff),
        (None, Some(End { exit: Exit::Failed(kind), .. })) => {
            Err(Error::new(kind, format!("the machine failed: {kind:?}")))
        }
        (None, Some(End { exit: Exit::Abandoned, .. })) => {
            Err(Error::new(FailureKind::Other, "the machine process lost its lifeline"))
        }
        (None, None) => unexplained(status),
    }
}

fn timed_out(timeout: Option<Span>) -> Error {
    let time = timeout.map(|timeout| timeout.to_string()).unwrap_or_default();
    Error::new(FailureKind::Timeout, format!("the machine had not ended by itself after {time}"))
        .hint("its console output tells how far it came; give it more time with `--timeout`")
}

/// A process that ended and said nothing.
fn unexplained(status: Option<ExitStatus>) -> Result<Ending, Error> {
    let Some(status) = status else {
        return Err(Error::new(FailureKind::Other, "the machine process is lost"));
    };
    if status.success() {
        return Ok(Ending::PowerOff);
    }
    let known = FailureKind::ALL.iter().find(|kind| status.code() == Some(i32::from(kind.code())));
    let kind = known.copied().unwrap_or(FailureKind::Other);
    let message = format!("the machine process {} and did not say why", machine::describe(status));
    Err(match status.signal() {
        Some(SIGKILL) => Error::new(kind, message).hint("this host may be out of memory: `dmesg` would tell"),
        _ => Error::new(kind, message).hint("what it wrote before may tell; else please report it"),
    })
}

const SIGKILL: i32 = 9;

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    use ec2vmm_host::violation;
    use ec2vmm_vmm_api::{Exit, Failure, FailureKind};
    use expect_test::{Expect, expect};

    use super::{Cause, conclude};
    use crate::run::events::End;

    #[test]
    fn every_way_to_end() {
        let told = |exit| Some(End { exit, failure: None });
        let failure = Failure { kind: FailureKind::NoKernel, message: "no kernel on it".into(), hint: None };
        let failed = Some(End { exit: Exit::Failed(failure.kind), failure: Some(failure) });
        check(None, 0, told(Exit::PowerOff), &expect!["PowerOff"]);
        check(None, 15 << 8, failed.clone(), &expect!["15: no kernel on it"]);
        check(
            None,
            30 << 8,
            told(Exit::Failed(FailureKind::TripleFault)),
            &expect!["30: the machine failed: TripleFault"],
        );
        check(None, 3 << 8, told(Exit::Abandoned), &expect!["1: the machine process lost its lifeline"]);
        check(None, 0, None, &expect!["PowerOff"]);
        check(None, 2 << 8, None, &expect!["2: the machine process ended with status 2 and did not say why"]);
        check(
            None,
            77 << 8,
            None,
            &expect!["1: the machine process ended with status 77 and did not say why"],
        );
        check(None, 9, None, &expect!["1: the machine process was ended by signal 9 and did not say why"]);
        check(None, 11, None, &expect!["1: the machine process was ended by signal 11 and did not say why"]);
        check(
            None,
            31,
            told(Exit::PowerOff),
            &expect![
                "36: the machine process was killed by its sandbox: it made a system call, which is not allowed"
            ],
        );
        check(Some(Cause::Left), 3 << 8, told(Exit::Abandoned), &expect!["PowerOff"]);
        check(Some(Cause::Signal(15)), 9, None, &expect!["Signal(15)"]);
        check(
            Some(Cause::TimedOut),
            3 << 8,
            told(Exit::Abandoned),
            &expect!["124: the machine had not ended by itself after 1m 30s"],
        );
        check(Some(Cause::OutputClosed), 3 << 8, failed, &expect!["141: the output was closed"]);
    }

    fn check(cause: Option<Cause>, status: i32, told: Option<End>, expect: &Expect) {
        let timeout = "90s".parse().ok();
        let status = ExitStatus::from_raw(status);
        let violation = violation::failure(u32::MAX, status);
        let seen = match conclude(cause, violation, Some(status), told, timeout) {
            Ok(ending) => format!("{ending:?}"),
            Err(error) => format!("{}: {error}", error.code()),
        };
        expect.assert_eq(&seen);
    }
}
