//! The listening socket: passed by systemd or by the daemon before, or made here.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use listenfd::ListenFd;
use rustix::fs::Mode;

use crate::refusal::Refusal;

/// A listening socket, and what is to be done with its name at the end.
pub(crate) struct Listener {
    pub(crate) socket: UnixListener,
    /// The name, where it is ours to remove.
    pub(crate) ours: Option<PathBuf>,
}

impl Listener {
    /// The socket that was passed, or a new one at `path`.
    pub(crate) fn take(path: &Path) -> Result<Self, Refusal> {
        let mut passed = ListenFd::from_env();
        match passed.take_unix_listener(0).map_err(|source| Refusal::Passed { source })? {
            Some(socket) => {
                // From the daemon before, whose name for it is a promise; systemd removes its own.
                let ours = std::env::var_os(NAMES).is_some_and(|names| names == NAME);
                Ok(Self { socket, ours: ours.then(|| path.to_owned()) })
            }
            None => Self::bind(path),
        }
    }

    fn bind(path: &Path) -> Result<Self, Refusal> {
        let failed = |source| Refusal::Socket { path: path.to_owned(), source };
        make_way(path)?;
        // Nobody gets in before mode and group are set. Nothing else runs yet that makes files.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let socket = bound.map_err(failed)?;
        if let Some(group) = group(GROUP) {
            match std::os::unix::fs::chown(path, None, Some(group)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    tracing::warn!(%error, "the socket cannot be given to the group {GROUP}");
                }
                Err(error) => return Err(failed(error)),
            }
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        Ok(Self { socket, ours: Some(path.to_owned()) })
    }

    /// Removes its name, where that is ours.
    pub(crate) fn remove(&self) {
        let Some(path) = &self.ours else { return };
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "the socket stays behind");
            }
            _ => {}
        }
    }
}

/// Removes the socket of a daemon that was killed. One that is alive, and what is no socket, stays.
fn make_way(path: &Path) -> Result<(), Refusal> {
    let failed = |source| Refusal::Socket { path: path.to_owned(), source };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !found.file_type().is_socket() {
        return Err(failed(io::Error::new(ErrorKind::AlreadyExists, "there is something else")));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Refusal::SocketInUse { path: path.to_owned() }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

/// The id of a local group, if there is one of that name.
fn group(name: &str) -> Option<u32> {
    let groups = fs::read_to_string(GROUPS).ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// Who may use the socket besides root.
const GROUP: &str = "ec2vmm";
const GROUPS: &str = "/etc/group";
/// Where names of passed sockets are, as sd_listen_fds_with_names(3) has it.
pub(crate) const NAMES: &str = "LISTEN_FDNAMES";
/// The name of a socket that the daemon before has made.
pub(crate) const NAME: &str = "ec2vmmd-made-it";

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{fs::PermissionsExt, net::UnixListener},
    };

    use super::Listener;
    use crate::refusal::Refusal;

    #[test]
    fn a_socket_of_a_daemon_that_was_killed_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        listener.remove();
        assert!(!path.exists());
    }

    #[test]
    fn who_is_alive_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _alive = UnixListener::bind(&path).unwrap();
        let refused = Listener::bind(&path).map(|_| ()).unwrap_err();
        assert!(matches!(refused, Refusal::SocketInUse { .. }), "{refused}");
    }

    #[test]
    fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert_eq!(Listener::bind(&path).map(|_| ()).unwrap_err().code(), 15);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
