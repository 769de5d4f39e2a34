//! What a machine process reports, one JSON document a line: `{"event":"running","us":5310}`.

use serde::{Deserialize, Serialize};

use crate::{
    control::Booted,
    exit::{Exit, Failure},
    sandbox::SandboxKind,
};

/// Something that happened. `us` counts microseconds since the process started.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// The process is shut in; it has looked at nothing of the guest's yet.
    Sandboxed {
        /// Microseconds since the process started.
        us: u64,
        /// How.
        sandbox: SandboxKind,
    },
    /// Kernel and initrd are in memory.
    Loaded {
        /// Microseconds since the process started.
        us: u64,
        /// What was found.
        booted: Booted,
    },
    /// The first vCPU is about to execute the first guest instruction, after a start or a reset.
    Running {
        /// Microseconds since the process started.
        us: u64,
    },
    /// The guest asked for a reset, or somebody did on its behalf. [`Event::Loaded`] follows.
    Reset {
        /// Microseconds since the process started.
        us: u64,
    },
    /// The guest's kernel said by pvpanic that it has panicked.
    Panicked {
        /// Microseconds since the process started.
        us: u64,
    },
    /// The last event: the machine has ended, and how.
    Ended {
        /// Microseconds since the process started.
        us: u64,
        /// How. The process's exit status is [`Exit::code`].
        exit: Exit,
        /// Why, where the machine failed.
        failure: Option<Failure>,
    },
}
