//! The way to userfaultfd(2) for machine processes: a userfaultfd belongs to the process that makes it, and so
//! what is handed over is the device that makes one.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

/// Opens `/dev/userfaultfd`. None: there is none (before Linux 6.1), or this user may not have it; the machine
/// process then tries the system call, and says so if that is not for it either.
///
/// # Errors
/// Anything else.
pub fn open() -> io::Result<Option<File>> {
    open_at(Path::new("/dev/userfaultfd"))
}

fn open_at(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(device) => Ok(Some(device)),
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied].contains(&error.kind()) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::open_at;

    #[test]
    fn one_that_is_not_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(open_at(&folder.path().join("userfaultfd")).unwrap().is_none());
        open_at(folder.path()).unwrap_err();
        assert!(open_at(std::path::Path::new("/dev/null")).unwrap().is_some());
    }
}
