//! ssh to a guest as root, with a key and nothing else.

use std::{path::Path, process::Command};

/// `ssh -i key root@address command`; `options` are more of those that follow `-o`.
pub(crate) fn command(key: &Path, address: &str, options: &[&str], command: &str) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-i"]).arg(key);
    ssh.args(OPTIONS.iter().chain(options).flat_map(|option| ["-o", option]));
    ssh.arg(format!("root@{address}")).arg(command);
    ssh
}

/// Nobody is asked, and guests are new each time.
const OPTIONS: &[&str] =
    &["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"];
