//! What went wrong on this host, as a cloud is told.

use std::{error::Error as StdError, io};

use ec2vmm_vmm_api::FailureKind;

use crate::{Explained, host::Error};

/// An error of this crate, with its causes after colons.
pub(super) fn explain(error: &(impl Explained + 'static)) -> Error {
    let (message, hint) = (with_causes(error), error.hint());
    if is_full(error) {
        return Error::NoRoom { message, hint };
    }
    match error.kind() {
        FailureKind::NoSuchImage
        | FailureKind::NotADisk
        | FailureKind::BrokenQcow2
        | FailureKind::BrokenPartitionTable
        | FailureKind::BrokenFileSystem
        | FailureKind::NoKernel
        | FailureKind::WrongKernel => Error::Image { message, hint },
        FailureKind::Memory | FailureKind::Cpus => Error::NoRoom { message, hint },
        _ => Error::Other { message, hint },
    }
}

/// An error of the host's system.
pub(crate) fn system(what: impl AsRef<str>) -> impl FnOnce(io::Error) -> Error {
    move |source| {
        let message = format!("{}: {source}", what.as_ref());
        match is_full(&source) {
            true => Error::NoRoom { message, hint: None },
            false => Error::Other { message, hint: None },
        }
    }
}

/// Anything else that can be said in one line.
pub(super) fn other(message: impl Into<String>) -> Error {
    Error::Other { message: message.into(), hint: None }
}

/// An error and its causes, on one line.
pub(super) fn with_causes(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// Runs what may wait for a disk where waiting holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(other(format!("work on this host was not finished: {error}"))),
    }
}

/// Whether there was no room: on the disk, in memory, of processes.
fn is_full(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let full = [
                rustix::io::Errno::NOSPC,
                rustix::io::Errno::DQUOT,
                rustix::io::Errno::NOMEM,
                rustix::io::Errno::AGAIN,
                rustix::io::Errno::MFILE,
                rustix::io::Errno::NFILE,
            ];
            return full.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{explain, system};
    use crate::{capacity, host::Error};

    #[test]
    fn a_full_disk_is_no_room() {
        let full = || io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        assert!(matches!(system("writing")(full()), Error::NoRoom { .. }));
        assert!(matches!(system("writing")(io::ErrorKind::NotFound.into()), Error::Other { .. }));
        let seed = crate::seed::Error::Make(full());
        let Error::NoRoom { message, .. } = explain(&seed) else { panic!("{seed}") };
        assert!(message.starts_with("cannot make the seed disk: "), "{message}");
        let memory = capacity::Error::Memory { wanted_mib: 2, available_mib: 1 };
        assert!(matches!(explain(&memory), Error::NoRoom { hint: Some(_), .. }));
    }
}
