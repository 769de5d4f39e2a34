//! Opens a disk's files by name, for the command line. The one place of this crate that opens paths.
//!
//! Backing files are followed as their headers name them: relative to the folder of the file that names
//! them, in the format that the header records, and read-only.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::disk::file_len;
use crate::error::ErrorKind;
use crate::format::{Format, Layer};
use crate::qcow2::{Backing, Header, Qcow2Error};

/// Why a disk's files cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file.
    #[error("{}: no such file", .0.display())]
    NotFound(PathBuf),
    /// The file may not be read, or written.
    #[error("{}: permission denied", .0.display())]
    Permission(PathBuf),
    /// Neither a regular file nor a block device.
    #[error("{}: {what}, not a disk", .path.display())]
    NotADisk {
        /// Which file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The qcow2 file is broken.
    #[error("{}: broken qcow2 file", .path.display())]
    Qcow2 {
        /// Which file.
        path: PathBuf,
        /// What is broken.
        #[source]
        source: Qcow2Error,
    },
    /// The backing files come back to a file that was there before.
    #[error("{}: the chain of backing files comes back to this file", .0.display())]
    Cycle(PathBuf),
    /// More layers than any sensible chain has.
    #[error("{}: more than {LAYERS_MAX} files lie on top of each other", .0.display())]
    TooDeep(PathBuf),
    /// The header names a backing file but not its format.
    #[error("{}: the format of its backing file {name:?} is not recorded", .path.display())]
    NoBackingFormat {
        /// Which file.
        path: PathBuf,
        /// The backing file's name.
        name: String,
    },
    /// The header names something as backing file that is no plain file, or in an unknown format.
    #[error("{}: its backing file {name:?} is {what}", .path.display())]
    Backing {
        /// Which file.
        path: PathBuf,
        /// The backing file's name.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The backing file is missing or cannot be opened.
    #[error("{}: cannot open its backing file", .path.display())]
    BackingOpen {
        /// Which file names it.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<OpenError>,
    },
    /// The host's system failed.
    #[error("{}: cannot open", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// What kind of error this is. A chain that breaks beneath a file makes that file broken.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Permission(_) => ErrorKind::Permission,
            Self::NotADisk { .. } => ErrorKind::NotADisk,
            Self::Qcow2 { source: Qcow2Error::Io(_), .. } | Self::Io { .. } => ErrorKind::Io,
            Self::BackingOpen { source, .. } if source.kind() == ErrorKind::Permission => {
                ErrorKind::Permission
            }
            Self::Qcow2 { .. }
            | Self::Cycle(_)
            | Self::TooDeep(_)
            | Self::NoBackingFormat { .. }
            | Self::Backing { .. }
            | Self::BackingOpen { .. } => ErrorKind::BrokenQcow2,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Qcow2 { source, .. } => source.hint(),
            Self::NoBackingFormat { path, name } => {
                let path = path.display();
                Some(format!("record it with `qemu-img rebase -u -F FORMAT -b {name} {path}`"))
            }
            Self::BackingOpen { path, source } => source.hint().or_else(|| {
                let path = path.display();
                Some(format!("name the right file with `qemu-img rebase -u -F FORMAT -b FILE {path}`"))
            }),
            Self::TooDeep(_) => Some("flatten it with `qemu-img convert`".to_owned()),
            Self::Permission(_) => Some("check the file's owner and mode".to_owned()),
            _ => None,
        }
    }
}

/// Opens the file at `path` and its backing files: the layers of a disk, the top one first, each with the
/// path under which it was found.
///
/// The format is `format` or else follows the name: `.qcow2` is qcow2, all else raw. Only the top file is
/// opened for writing, and only with `write`.
///
/// # Errors
/// A file is not there, may not be opened, is no file or empty, or the chain is broken.
pub fn open_chain(
    path: &Path,
    format: Option<Format>,
    write: bool,
) -> Result<Vec<(PathBuf, Layer)>, OpenError> {
    let format = format.unwrap_or_else(|| by_name(path));
    let mut chain: Vec<(PathBuf, Layer)> = Vec::new();
    let mut seen = Vec::new();
    let mut next = Some((path.to_owned(), format));
    while let Some((path, format)) = next.take() {
        let (file, backing) =
            open_one(&path, format, write && chain.is_empty(), &mut seen).map_err(|source| {
                match chain.last() {
                    Some((above, _)) => nest(above, source),
                    None => source,
                }
            })?;
        if let Some(backing) = backing {
            next = Some(resolve(&path, backing)?);
        }
        chain.push((path, Layer { file, format }));
    }
    Ok(chain)
}

/// An error beneath a file, said of the file that named it, unless it says so itself.
fn nest(above: &Path, source: OpenError) -> OpenError {
    match source {
        OpenError::Cycle(_) | OpenError::TooDeep(_) => source,
        source => OpenError::BackingOpen { path: above.to_owned(), source: Box::new(source) },
    }
}

fn open_one(
    path: &Path,
    format: Format,
    write: bool,
    seen: &mut Vec<(u64, u64)>,
) -> Result<(File, Option<Backing>), OpenError> {
    // A folder or a pipe must be refused before it is opened: opening a pipe waits for its other end.
    let kind = std::fs::metadata(path).map_err(|error| failed(path, error))?.file_type();
    let not_a_disk = |what| Err(OpenError::NotADisk { path: path.to_owned(), what });
    if kind.is_dir() {
        return not_a_disk("a folder");
    }
    if !kind.is_file() && !kind.is_block_device() {
        return not_a_disk("a special file");
    }
    let file = OpenOptions::new().read(true).write(write).open(path).map_err(|error| failed(path, error))?;
    let facts = file.metadata().map_err(|error| failed(path, error))?;
    let identity = (facts.dev(), facts.ino());
    if seen.contains(&identity) {
        return Err(OpenError::Cycle(path.to_owned()));
    }
    if seen.len() == LAYERS_MAX {
        return Err(OpenError::TooDeep(path.to_owned()));
    }
    seen.push(identity);
    let len = file_len(&file).map_err(|error| failed(path, error))?;
    if len == 0 {
        return not_a_disk("empty");
    }
    let backing = match format {
        Format::Raw => None,
        Format::Qcow2 => {
            let header = Header::read(&file, len);
            header.map_err(|source| OpenError::Qcow2 { path: path.to_owned(), source })?.backing
        }
    };
    Ok((file, backing))
}

/// The path and format of a backing file.
fn resolve(path: &Path, Backing { name, format }: Backing) -> Result<(PathBuf, Format), OpenError> {
    let refuse = |what| Err(OpenError::Backing { path: path.to_owned(), name: name.clone(), what });
    // QEMU takes a name with a colon before any slash for a protocol: json:, nbd:, http:.
    let colon = name.find(':');
    if colon.is_some() && colon < name.find('/').or(Some(usize::MAX)) {
        return refuse("not a file");
    }
    if name.contains('\0') {
        return refuse("not a file name");
    }
    let format = match format.as_deref() {
        Some("raw") => Format::Raw,
        Some("qcow2") => Format::Qcow2,
        Some(_) => return refuse("in a format that is not supported"),
        None => return Err(OpenError::NoBackingFormat { path: path.to_owned(), name }),
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    Ok((folder.join(name), format))
}

fn by_name(path: &Path) -> Format {
    let is_qcow2 = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("qcow2"));
    if is_qcow2 { Format::Qcow2 } else { Format::Raw }
}

fn failed(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OpenError::NotFound(path),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => OpenError::Permission(path),
        _ => OpenError::Io { path, source },
    }
}

/// More than any sensible chain of snapshots; QEMU gets slow long before.
pub const LAYERS_MAX: usize = 16;
