//! What can go wrong between a command and the daemon.

use std::{io, path::PathBuf, time::Duration};

use super::Problem;

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody listens.
    #[error("no daemon answers on {}", .socket.display())]
    NoDaemon {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody listens who is not for this user.
    #[error("no permission for the daemon's socket {}", .socket.display())]
    Forbidden {
        /// Which.
        socket: PathBuf,
    },
    /// The socket cannot be used for another reason.
    #[error("cannot connect to {}", .socket.display())]
    Connect {
        /// Which.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon ended, or let go of the connection, before it had answered in full.
    #[error("the daemon went away before it had answered in full")]
    Gone(#[source] Option<hyper::Error>),
    /// No answer in time.
    #[error("the daemon did not answer within {} s", .0.as_secs())]
    Slow(Duration),
    /// More than anybody wants to read.
    #[error("the daemon's answer is longer than {0} bytes")]
    TooLong(usize),
    /// An answer that is not in the language.
    #[error("the daemon's answer makes no sense: {0}")]
    Nonsense(String),
    /// The daemon says no, and why.
    #[error("{} ({})", .0.detail, .0.code)]
    Refused(Box<Problem>),
    /// This program's own machinery.
    #[error("cannot talk to the daemon")]
    Machinery(#[source] io::Error),
}

impl Error {
    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoDaemon { .. } => {
                "start it with `systemctl start ec2vmmd`, or try one out with `ec2vmmd --host simulated`; \
                 `--socket` or EC2VMM_SOCKET names another socket"
                    .to_owned()
            }
            Self::Forbidden { .. } => "members of the group ec2vmm may use it: \
                `sudo usermod -aG ec2vmm $USER`, then log in again"
                .to_owned(),
            Self::Connect { .. } => "`--socket` or EC2VMM_SOCKET names another socket".to_owned(),
            Self::Gone(_) => "`ec2vmm status` tells whether it is back; what was promised goes on".to_owned(),
            Self::Slow(_) => "`journalctl -u ec2vmmd` tells what it is busy with".to_owned(),
            Self::Nonsense(_) => {
                "`ec2vmm --version` and `ec2vmm status` tell whether both are of one version".to_owned()
            }
            Self::Refused(problem) => {
                return problem.hint.clone().or_else(|| usual_hint(&problem.code).map(str::to_owned));
            }
            Self::TooLong(_) | Self::Machinery(_) => return None,
        })
    }

    /// The daemon was there and is not, so that it is worth to ask the next one.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::NoDaemon { .. } | Self::Gone(_))
    }

    /// The exit status.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::NoDaemon { .. } | Self::Connect { .. } => 40,
            Self::Forbidden { .. } => 21,
            Self::Gone(_) => 46,
            Self::Slow(_) | Self::TooLong(_) | Self::Nonsense(_) => 45,
            Self::Refused(problem) => refused(problem),
            Self::Machinery(_) => 1,
        }
    }
}

/// What this command can do about a refusal where the daemon, which knows many clients, says nothing.
fn usual_hint(code: &str) -> Option<&'static str> {
    Some(match code {
        "InvalidInstanceID.NotFound" => "`ec2vmm ls --all` lists the instances",
        "InvalidKeyPair.NotFound" => "`ec2vmm key ls` lists the key pairs; `ec2vmm key create` makes one",
        "InvalidKeyPair.Duplicate" => "`ec2vmm key ls` lists the key pairs; `ec2vmm key rm` deletes one",
        "InvalidAMIID.NotFound" => "`ec2vmm image ls` lists the images; `ec2vmm image register` makes one",
        "IncorrectInstanceState" => {
            "`ec2vmm show ID` tells its state; `--wait` and `ec2vmm wait` wait for one"
        }
        "OperationNotPermitted" => {
            "`ec2vmm modify ID --protect off` and `--protect-stop off` take the protection off"
        }
        "InsufficientInstanceCapacity" => {
            "`ec2vmm status` tells what is left; stopped instances take nothing"
        }
        "IdempotentParameterMismatch" => "take another `--token`, or none",
        "Unavailable" | "InternalError" => "`journalctl -u ec2vmmd` tells more",
        _ => return None,
    })
}

/// Scripts want to tell apart what another argument mends, what time mends, and what neither does.
fn refused(problem: &Problem) -> u8 {
    let code = problem.code.as_str();
    match problem.status {
        _ if code.ends_with(".NotFound") || code.ends_with(".Unknown") => 42,
        _ if code.starts_with("Insufficient") || code.ends_with("LimitExceeded") => 44,
        404 => 42,
        409 => 43,
        401 | 403 => 43,
        400..=499 => 41,
        _ => 45,
    }
}
