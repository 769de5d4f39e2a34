//! Every side effect on this host that a machine needs: disks and their locks, taps, seeds, sockets,
//! the machine process itself.
//!
//! It does what it is told and says why it could not. It never decides what a machine should be, never
//! prints, reads no environment variable and no terminal.

pub mod capacity;
pub mod cgroups;
pub mod control;
pub mod disks;
pub mod files;
mod held;
pub mod host;
pub mod linux;
pub mod machine;
pub mod sandbox;
pub mod seed;
pub mod simulated;
pub mod sockets;
mod spawn;
mod system_calls;
pub mod tap;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod userfaultfd;
pub mod violation;

use ec2vmm_vmm_api::FailureKind;

/// An error that ends at people: with an exit status, and often with something that they can do.
pub trait Explained: std::error::Error {
    /// What kind of failure, and so which exit status.
    fn kind(&self) -> FailureKind;

    /// What to do about it: an imperative, one line.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// The kind of an error of the host's system, where nothing more is known than what it says.
fn kind_of_io(error: &std::io::Error, absent: FailureKind) -> FailureKind {
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => absent,
        std::io::ErrorKind::PermissionDenied => FailureKind::Permission,
        _ => FailureKind::Other,
    }
}
