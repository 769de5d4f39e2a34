//! Files of ext2, ext3 and ext4.

use std::io;

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use crate::error::ErrorKind;
use crate::window::Window;

/// An ext4 file system.
pub(crate) struct Files {
    fs: Ext4,
}

/// A regular file, found.
pub(crate) struct FileHandle {
    fs: Ext4,
    path: String,
    size: u64,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The file system is broken, or uses what we do not know.
    #[error("the ext4 file system is broken or unknown: {0}")]
    Broken(String),
    /// A file is larger than anything of its kind.
    #[error("{path} has {size} bytes: more than {limit} is refused")]
    TooLarge {
        /// Which file.
        path: String,
        /// Its size.
        size: u64,
        /// The most that is read.
        limit: u64,
    },
    /// The disk cannot be read.
    #[error("cannot read")]
    Io(#[source] io::Error),
}

impl FilesError {
    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Broken(_) => ErrorKind::BrokenFileSystem,
            Self::TooLarge { .. } => ErrorKind::WrongKernel,
            Self::Io(_) => ErrorKind::Io,
        }
    }
}

impl Files {
    pub(crate) fn open(window: Window) -> Result<Self, FilesError> {
        Ok(Self { fs: Ext4::load(Box::new(Reader(window))).map_err(broken)? })
    }

    /// The regular file at `path`; `None` when there is none.
    pub(crate) fn file(&self, path: &str) -> Result<Option<FileHandle>, FilesError> {
        let found = match self.fs.metadata(path) {
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory | Ext4Error::NotAbsolute) => return Ok(None),
            other => other.map_err(broken)?,
        };
        let regular = !found.is_dir();
        Ok(regular.then(|| FileHandle { fs: self.fs.clone(), path: path.to_owned(), size: found.len() }))
    }

    /// Whether a folder is at `path`.
    pub(crate) fn is_folder(&self, path: &str) -> Result<bool, FilesError> {
        match self.fs.metadata(path) {
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory | Ext4Error::NotAbsolute) => Ok(false),
            other => Ok(other.map_err(broken)?.is_dir()),
        }
    }

    /// The names in the folder at `path`, at most `limit`; none when there is no such folder.
    pub(crate) fn list(&self, path: &str, limit: usize) -> Result<Vec<String>, FilesError> {
        if !self.is_folder(path)? {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in self.fs.read_dir(path).map_err(broken)?.take(limit) {
            let entry = entry.map_err(broken)?;
            if let Ok(name) = entry.file_name().as_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

impl FileHandle {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn check_size(&self, limit: u64) -> Result<(), FilesError> {
        if self.size <= limit {
            return Ok(());
        }
        Err(FilesError::TooLarge { path: self.path.clone(), size: self.size, limit })
    }

    pub(crate) fn read_head(&self, len: usize) -> Result<Vec<u8>, FilesError> {
        let mut file = self.fs.open(self.path.as_str()).map_err(broken)?;
        let mut head = vec![0; len];
        let mut done = 0;
        while let Some(rest) = head.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_bytes(rest).map_err(broken)? {
                0 => break,
                len => done += len,
            }
        }
        head.truncate(done);
        Ok(head)
    }

    pub(crate) fn read(&self, limit: u64) -> Result<Vec<u8>, FilesError> {
        self.check_size(limit)?;
        self.fs.read(self.path.as_str()).map_err(broken)
    }

    pub(crate) fn for_each(&self, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), FilesError> {
        let mut file = self.fs.open(self.path.as_str()).map_err(broken)?;
        let mut buffer = vec![0; 65536];
        loop {
            let len = file.read_bytes(&mut buffer).map_err(broken)?;
            if len == 0 {
                return Ok(());
            }
            take(buffer.get(..len).unwrap_or_default()).map_err(FilesError::Io)?;
        }
    }
}

fn broken(error: Ext4Error) -> FilesError {
    match error {
        Ext4Error::Io(error) => FilesError::Io(io::Error::other(error)),
        other => FilesError::Broken(other.to_string()),
    }
}

struct Reader(Window);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.0.read_at(buffer, start)?)
    }
}
