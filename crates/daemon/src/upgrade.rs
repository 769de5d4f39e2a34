//! Another program goes on in this process: same pid, same listening socket, so that no client is
//! refused and systemd sees one service all along.

use std::{
    env, io,
    os::unix::{net::UnixListener, process::CommandExt},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};

use crate::{listener, refusal::Refusal};

/// The program to go on with, as the file was named when this one was started.
pub(crate) struct Program(PathBuf);

/// All that the next program is given.
pub(crate) struct Upgrade {
    program: Program,
    socket: UnixListener,
    /// The socket's name is ours to remove.
    ours: bool,
}

impl Program {
    /// The file that this process was started from.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        env::current_exe().map(Self)
    }

    /// Sees that there is a program in the file that can be executed. Better now than after the end.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let path = self.0.display();
        let mut command = tokio::process::Command::new(&self.0);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.kill_on_drop(true);
        match tokio::time::timeout(CHECK_TIME_MAX, command.status()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!("`{path} --version` ended with {status}")),
            Ok(Err(error)) => Err(format!("cannot execute {path}: {error}")),
            Err(_) => Err(format!("`{path} --version` does not end")),
        }
    }
}

impl Upgrade {
    pub(crate) fn new(program: Program, socket: UnixListener, ours: bool) -> Self {
        Self { program, socket, ours }
    }

    /// Executes it. Returns only where that fails.
    pub(crate) fn exec(self) -> Refusal {
        let path = self.program.0;
        let failed = |source| Refusal::Exec { path: path.clone(), source };
        let mut command = Command::new(&path);
        // The convention of sd_listen_fds(3), which the next program reads anyway.
        command.args(env::args_os().skip(1)).env("LISTEN_FDS", "1");
        command.env("LISTEN_PID", std::process::id().to_string());
        match self.ours {
            true => command.env(listener::NAMES, listener::NAME),
            false => command.env_remove(listener::NAMES),
        };
        let socket = FdMapping { parent_fd: self.socket.into(), child_fd: LISTEN_FDS_START };
        if let Err(error) = command.fd_mappings(vec![socket]) {
            return failed(io::Error::other(error));
        }
        failed(command.exec())
    }
}

/// The first passed descriptor, by sd_listen_fds(3).
const LISTEN_FDS_START: i32 = 3;
/// How long the next program may take to tell its version.
const CHECK_TIME_MAX: Duration = Duration::from_secs(10);
