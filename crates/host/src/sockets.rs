//! Listening Unix sockets that a machine process is handed.
//!
//! Invariant: the file exists as long as the [`Listener`], is its owner's alone (mode 0600) from the first
//! moment, never replaces a socket that somebody listens on, and what is removed at the end is our own.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
};

use ec2vmm_vmm_api::FailureKind;
use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::{Explained, kind_of_io};

/// Why there is no socket at a path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody listens there.
    #[error("socket {} is in use by another process", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file of another kind is there.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("cannot listen on socket {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Explained for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::InUse { .. } | Self::NotASocket { .. } => FailureKind::BadInput,
            Self::Listen { source, .. } => kind_of_io(source, FailureKind::BadInput),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::InUse { .. } | Self::NotASocket { .. } => Some("choose another path".into()),
            Self::Listen { source, .. } if source.raw_os_error() == Some(NAME_TOO_LONG) => {
                Some("a socket's path has at most 107 bytes: choose a shorter one".into())
            }
            Self::Listen { .. } => None,
        }
    }
}

/// A listening socket with a name in the file system. The name goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    /// Device and inode of the socket file, to know it again.
    file: (u64, u64),
    socket: OwnedFd,
}

impl Listener {
    /// Listens at `path`. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`Error`].
    pub fn bind(path: &Path) -> Result<Self, Error> {
        make_room(path)?;
        let failed = |source: io::Error| Error::Listen { path: path.to_owned(), source };
        let socket = listen(path).map_err(|errno| failed(errno.into()))?;
        Ok(Self { path: path.to_owned(), file: identity(path).map_err(failed)?, socket })
    }

    /// The way to connect to it, whatever becomes of its name.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn dialer(&self) -> Result<Dialer, Error> {
        let file = rustix::fs::open(&self.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        file.map(Dialer).map_err(|errno| Error::Listen { path: self.path.clone(), source: errno.into() })
    }

    /// Another descriptor of the socket, to give away.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.file) {
            // It is of no more use to anybody; one that cannot be removed is replaced by the next bind.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens on a socket that keeps its name, for somebody who outlives us. One that nobody listens on any more
/// is replaced.
///
/// # Errors
/// [`Error`].
pub fn listen_named(path: &Path) -> Result<OwnedFd, Error> {
    make_room(path)?;
    listen(path).map_err(|errno| Error::Listen { path: path.to_owned(), source: errno.into() })
}

/// Connects to a socket by its inode.
#[derive(Debug)]
pub struct Dialer(OwnedFd);

impl Dialer {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Listens on a socket that only the returned [`Dialer`] leads to. It has a name in `folder` for an
/// instant: abstract names would be open to every user, and a pair of sockets cannot be listened on.
///
/// # Errors
/// [`Error::Listen`].
pub fn listen_unnamed(folder: &Path) -> Result<(OwnedFd, Dialer), Error> {
    let name = format!("ec2vmm-{}", uuid::Uuid::new_v4());
    let path = folder.join(&name);
    let failed = |source: io::Error| Error::Listen { path: path.clone(), source };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::open(folder, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    // However long the folder's name is, this one fits into an address.
    let short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())).join(name);
    let listener = Listener {
        socket: listen(&short).map_err(|errno| failed(errno.into()))?,
        file: identity(&path).map_err(failed)?,
        path: path.clone(),
    };
    let dialer = listener.dialer()?;
    Ok((listener.try_clone().map_err(failed)?, dialer))
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    path.symlink_metadata().map(|found| (found.dev(), found.ino()))
}

/// Removes a socket that nobody listens on.
fn make_room(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Listen { path: path.to_owned(), source };
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(failed(error)),
        _ => Err(Error::InUse { path: path.to_owned() }),
    }
}

fn listen(path: &Path) -> rustix::io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file takes the mode of the unbound socket, so there is no moment at which others may connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

const BACKLOG: i32 = 128;
const NAME_TOO_LONG: i32 = rustix::io::Errno::NAMETOOLONG.raw_os_error();

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixStream};

    use super::{Error, Listener, listen_unnamed};

    #[test]
    fn the_name_lives_as_long_as_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(Error::InUse { .. })));
        assert!(path.exists(), "a live socket stays");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(listener);
    }

    #[test]
    fn without_a_name_one_still_gets_there() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let (socket, dialer) = listen_unnamed(&deep).unwrap();
        assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 0);
        dialer.connect().unwrap();
        drop(socket);
        dialer.connect().unwrap_err();
    }

    #[test]
    fn what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(Error::NotASocket { .. })));
        std::fs::remove_file(&path).unwrap();
        let listener = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        drop(listener);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        assert!(matches!(Listener::bind(&folder.path().join("x".repeat(120))), Err(Error::Listen { .. })));
    }
}
