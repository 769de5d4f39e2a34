//! Errors as people see them: one line that says what and where, one that says what to do, and an exit
//! status.

use std::{io::Write, process::ExitCode};

use ec2vmm_host::Explained;
use ec2vmm_vmm_api::{Exit, Failure, FailureKind};

use crate::output;

/// An error that ends the command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Something failed, and here is what.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// Whoever read our output reads no more; there is nobody to tell.
    #[error("the output was closed")]
    OutputClosed,
}

impl Error {
    /// An error in words.
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self::Failed(Failure { kind, message: message.into(), hint: None })
    }

    /// With what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Failed(failure) = &mut self {
            failure.hint = Some(hint.into());
        }
        self
    }

    /// The exit status.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Failed(failure) => Exit::Failed(failure.kind).code(),
            Self::OutputClosed => output::CLOSED,
        }
    }

    /// Tells people on standard error.
    pub(crate) fn report(&self) -> ExitCode {
        if let Self::Failed(Failure { message, hint, .. }) = self {
            let hint = hint.as_ref().map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
            // With standard error closed there is nobody left to tell; the exit status still says it.
            let _ = write!(std::io::stderr().lock(), "ec2vmm: {message}\n{hint}");
        }
        self.code().into()
    }
}

impl<E: Explained> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Failed(Failure { kind: error.kind(), message: chain(&error), hint: error.hint() })
    }
}

/// For `map_err`: the host's system failed to do something.
pub(crate) fn failed_to(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    let message = format!("cannot {what}");
    move |error| Error::new(FailureKind::Other, format!("{message}: {error}"))
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |message, cause| format!("{message}: {cause}"))
}
