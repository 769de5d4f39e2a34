//! What a machine process reports, one JSON document a line: `{"event":"running","us":5310}`.

use serde::{Deserialize, Serialize};

use crate::{
    control::Booted,
    exit::{Exit, Failure},
    sandbox::SandboxKind,
};

/// Something that happened. `us` counts microseconds since the process started.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// The machine is as it was when a snapshot was taken. [`Event::Running`] follows.
    Restored {
        /// Microseconds since the process started.
        us: u64,
    },
    /// The guest asked for a reset, or somebody did on its behalf. [`Event::Loaded`] follows.
    Reset {
        /// Microseconds since the process started.
        us: u64,
    },
    /// The machine stands still, as it was asked to.
    Paused {
        /// Microseconds since the process started.
        us: u64,
    },
    /// It goes on.
    Resumed {
        /// Microseconds since the process started.
        us: u64,
    },
    /// A disk or network interface has been attached, and the guest told.
    Attached {
        /// Microseconds since the process started.
        us: u64,
        /// Which.
        id: String,
    },
    /// A disk or network interface is gone, and its descriptors are closed: the guest has let go of it, was
    /// forced to, or has been reset since it was asked to.
    Detached {
        /// Microseconds since the process started.
        us: u64,
        /// Which.
        id: String,
    },
    /// A vCPU has been busy with interrupts off for [`crate::MachineConfig::stuck_after_s`], so that no timer
    /// reaches it: its guest hangs, or soon will. The machine goes on.
    Stuck {
        /// Microseconds since the process started.
        us: u64,
        /// Which, from 0.
        vcpu: u8,
        /// Where it executes: the guest's own address.
        rip: u64,
    },
    /// A vCPU that was stuck takes interrupts again, or rests.
    Recovered {
        /// Microseconds since the process started.
        us: u64,
        /// Which, from 0.
        vcpu: u8,
    },
    /// The file of [`crate::config::MemoryBackend::Userfaultfd`]'s `record` is written, and no more is noted.
    WorkingSetRecorded {
        /// Microseconds since the process started.
        us: u64,
        /// How many pages of 4 KiB are in it.
        pages: u64,
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
