//! How a machine ends, and every way in which it can fail, each with the exit status that scripts see.

use serde::{Deserialize, Serialize};

/// How a machine ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// The guest powered itself off, or its power was cut on request.
    PowerOff,
    /// The owner let go of the lifeline.
    Abandoned,
    /// Something failed: the kind says what.
    Failed(FailureKind),
}

impl Exit {
    /// The process's exit status.
    pub fn code(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Abandoned => 3,
            Self::Failed(kind) => kind.code(),
        }
    }
}

/// A failure as people read it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// One line: what failed and where, causes after colons.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

macro_rules! failure_kinds {
    ($($(#[$doc:meta])+ $name:ident = $code:literal,)+) => {
        /// What can go wrong on the way to a running machine, or end one. Shared by `ec2vmm` and
        /// `ec2vmm-vmm`, so that both exit with the same status.
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum FailureKind { $($(#[$doc])+ $name,)+ }

        impl FailureKind {
            /// Every kind, in the order of their exit statuses.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The process's exit status.
            pub fn code(self) -> u8 {
                match self { $(Self::$name => $code,)+ }
            }
        }
    };
}

failure_kinds! {
    /// Anything that has no status of its own: an error of the host's system, say.
    Other = 1,
    /// The command line or the configuration makes no sense.
    Usage = 2,
    /// The image or disk file is not there.
    NoSuchImage = 10,
    /// The file is not a disk: empty, a folder, or nothing on it that could be booted.
    NotADisk = 11,
    /// The qcow2 file is truncated, cyclic or otherwise broken.
    BrokenQcow2 = 12,
    /// The partition table is broken.
    BrokenPartitionTable = 13,
    /// The file system is broken.
    BrokenFileSystem = 14,
    /// No boot entry or no kernel was found on the disk.
    NoKernel = 15,
    /// The kernel is not for this processor architecture, or is no kernel.
    WrongKernel = 16,
    /// No such instance type.
    UnknownType = 17,
    /// More memory than the host has, or less than a machine needs.
    Memory = 18,
    /// More vCPUs than possible.
    Cpus = 19,
    /// There is no `/dev/kvm`.
    NoKvm = 20,
    /// `/dev/kvm` or another file may not be used by this user.
    Permission = 21,
    /// `/dev/kvm` opens, but this processor has no hardware virtualization to run Linux on.
    NoHardwareVirtualization = 22,
    /// The tap interface is not there, or is none.
    NoTap = 23,
    /// The tap interface is in use.
    TapBusy = 24,
    /// Another machine uses the disk.
    DiskInUse = 25,
    /// A key, user-data or other input file cannot be read or makes no sense.
    BadInput = 26,
    /// A snapshot's file is damaged, cut short, of another snapshot, or none.
    BrokenSnapshot = 27,
    /// The snapshot was written by a later version.
    SnapshotVersion = 28,
    /// The processor lacks what the snapshot's guest uses.
    SnapshotCpu = 29,
    /// The guest's processor shut down on a triple fault.
    TripleFault = 30,
    /// The guest's kernel panicked.
    GuestPanic = 31,
    /// KVM gave up: an internal error, or an instruction that it cannot emulate.
    KvmInternalError = 32,
    /// The snapshot is of another machine: other memory, vCPUs, disks, interfaces, or what they can do.
    SnapshotMachine = 33,
    /// A disk is not as it was when the snapshot was taken.
    SnapshotDisk = 34,
    /// The machine process cannot be shut in on this host as it was asked.
    Sandbox = 35,
    /// The machine process did what its sandbox forbids, and was killed.
    ForbiddenCall = 36,
    /// This host, or this user on it, has no userfaultfd that serves KVM.
    NoUserfaultfd = 37,
    /// The guest was not done when the time of `--timeout` had passed.
    Timeout = 124,
}

#[cfg(test)]
mod tests {
    use super::{Exit, FailureKind};

    #[test]
    fn every_kind_has_a_status_of_its_own() {
        let mut codes: Vec<u8> = FailureKind::ALL.iter().map(|kind| kind.code()).collect();
        codes.extend([Exit::PowerOff.code(), Exit::Abandoned.code()]);
        let count = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), count);
        assert!(codes.iter().all(|&code| code < 126), "126 and up belong to shells and signals");
    }
}
