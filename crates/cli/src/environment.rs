//! The environment variables that are listened to, read in one place.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// What the environment says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    /// `EC2VMM_VMM`: the program of machine processes.
    pub(crate) vmm: Option<PathBuf>,
    /// `EC2VMM_LOG`: what machine processes log.
    pub(crate) vmm_log: Option<String>,
    /// `PATH`.
    pub(crate) path: Option<OsString>,
    /// `TMPDIR`.
    pub(crate) tmpdir: Option<PathBuf>,
    /// `EC2VMM_SOCKET`: the daemon's socket.
    pub(crate) socket: Option<PathBuf>,
    /// `NO_COLOR` (no-color.org), or a terminal that knows no colours.
    pub(crate) plain: bool,
}

impl Environment {
    pub(crate) fn read() -> Self {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            vmm: path("EC2VMM_VMM"),
            vmm_log: std::env::var("EC2VMM_LOG").ok(),
            path: std::env::var_os("PATH"),
            tmpdir: path("TMPDIR"),
            socket: path("EC2VMM_SOCKET"),
            plain: path("NO_COLOR").is_some() || std::env::var_os("TERM").is_some_and(|term| term == "dumb"),
        }
    }

    /// Where what is thrown away is written meanwhile. It may grow as large as a disk, and `/tmp` is
    /// often memory.
    pub(crate) fn scratch(&self) -> PathBuf {
        let usual = || ["/var/tmp", "/tmp"].into_iter().find(|folder| Path::new(folder).is_dir());
        self.tmpdir.clone().or_else(|| usual().map(PathBuf::from)).unwrap_or_else(|| ".".into())
    }
}
