//! Input files: a kernel to hand on, a key to read.
//!
//! Invariant: a file that is read into memory is never read beyond the limit given for it, and opening
//! never waits, whatever the path names.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use ec2vmm_vmm_api::FailureKind;
use rustix::fs::OFlags;

use crate::{Explained, kind_of_io};

/// Why an input file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a folder, say.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It is larger than it may be.
    #[error("{} is larger than {limit_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that it may hold.
        limit_bytes: u64,
    },
}

impl Explained for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Unreadable { source, .. } => match kind_of_io(source, FailureKind::BadInput) {
                FailureKind::Other => FailureKind::BadInput,
                kind => kind,
            },
            Self::NotAFile { .. } | Self::TooLarge { .. } => FailureKind::BadInput,
        }
    }
}

/// Opens a regular file for reading.
///
/// # Errors
/// [`Error::Unreadable`], [`Error::NotAFile`].
pub fn open(path: &Path) -> Result<File, Error> {
    let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
    // Without O_NONBLOCK a fifo would wait for a writer.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    match file.metadata().map_err(unreadable)?.is_file() {
        true => Ok(file),
        false => Err(Error::NotAFile { path: path.to_owned() }),
    }
}

/// Reads a regular file of at most `limit_bytes`.
///
/// # Errors
/// [`Error::TooLarge`], and those of [`open`].
pub fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    open(path)?
        .take(limit_bytes.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
    match u64::try_from(content.len()) {
        Ok(length) if length <= limit_bytes => Ok(content),
        _ => Err(Error::TooLarge { path: path.to_owned(), limit_bytes }),
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, open, read};

    #[test]
    fn reads_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(matches!(read(&path, 4), Err(Error::TooLarge { limit_bytes: 4, .. })));
        assert!(matches!(read(folder.path(), 4), Err(Error::NotAFile { .. })));
        assert!(matches!(read(&folder.path().join("none"), 4), Err(Error::Unreadable { .. })));
    }

    #[test]
    fn a_fifo_does_not_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(matches!(open(&path), Err(Error::NotAFile { .. })));
    }
}
