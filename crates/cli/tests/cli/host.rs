//! A host to run on: a folder that must be as empty afterwards as before, and the command in it.

use std::{
    fmt::Write as _,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use ec2vmm_vmm_api::MachineConfig;
use expect_test::Expect;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use crate::{daemon::Daemon, fake};

/// A host with an image, `disk.raw`, and a device that stands for KVM.
pub(crate) struct Host {
    folder: TempDir,
}

impl Host {
    /// Its machines play this part.
    pub(crate) fn new(part: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = Self { folder };
        std::fs::create_dir(host.path("tmp")).unwrap();
        std::fs::write(host.path("kvm"), "").unwrap();
        std::fs::File::create(host.path("disk.raw")).unwrap().set_len(1 << 20).unwrap();
        let program = std::env::current_exe().unwrap();
        std::fs::write(host.path("part"), part).unwrap();
        // A machine process gets no environment but what is meant for it.
        let script = format!(
            "#!/bin/sh\nexport {}=\"$(cat '{}')\" {}='{}'\nexec '{}' --exact {} --ignored --nocapture\n",
            fake::PART,
            host.path("part").display(),
            fake::CONFIG,
            host.path("config.json").display(),
            program.display(),
            fake::TEST
        );
        std::fs::write(host.path("vmm"), script).unwrap();
        std::fs::set_permissions(host.path("vmm"), std::fs::Permissions::from_mode(0o755)).unwrap();
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command with these words, split at spaces, in the host's folder.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ec2vmm"));
        command.args(words.split_whitespace());
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("TMPDIR", self.path("tmp")).env("EC2VMM_VMM", self.path("vmm"));
        // Never one that may run on the real host.
        command.env("EC2VMM_SOCKET", self.path("daemon.sock"));
        command.env_remove("EC2VMM_COMPLETE").env_remove("NO_COLOR").env_remove("TERM");
        command
    }

    /// A daemon where commands look for one.
    pub(crate) fn daemon(&self) -> Daemon {
        Daemon::start(self.folder.path())
    }

    /// `ec2vmm run`, with what makes it independent of the real host.
    pub(crate) fn run(&self, words: &str) -> Command {
        self.command(&format!("run --emulated-kvm --kvm-device kvm --cgroup none {words}"))
    }

    /// Starts `ec2vmm run` with pipes, and waits until its machine process has begun.
    pub(crate) fn start(&self, words: &str) -> Running<'_> {
        let mut command = self.run(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(&mut command)
    }

    pub(crate) fn spawn(&self, command: &mut Command) -> Running<'_> {
        let child = command.spawn().unwrap();
        wait_until("the machine process begins", || self.path("config.json").exists());
        let machine = std::fs::read_to_string(self.path("config.json.pid")).unwrap();
        let machine = Pid::from_raw(machine.parse().unwrap()).unwrap();
        Running { host: self, child, machine }
    }

    /// What the machine process was given.
    pub(crate) fn config(&self) -> MachineConfig {
        serde_json::from_slice(&std::fs::read(self.path("config.json")).unwrap()).unwrap()
    }

    /// Nothing is left in the folder for temporary files.
    pub(crate) fn assert_clean(&self) {
        let left: Vec<_> =
            std::fs::read_dir(self.path("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// Runs a command to its end, and shows its status and what it printed.
    pub(crate) fn check(&self, command: &mut Command, expect: &Expect) {
        let output = command.output().unwrap();
        expect.assert_eq(&self.show(&output));
        self.assert_clean();
    }

    /// Status and output, without what differs from run to run.
    pub(crate) fn show(&self, output: &Output) -> String {
        let mut text = format!("{}\n", show_status(output.status));
        for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            if !bytes.is_empty() {
                let printed = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
                writeln!(text, "-- {name}\n{}", printed.trim_end()).unwrap();
            }
        }
        without_ages(&without_times(&text)).replace(self.folder.path().to_str().unwrap(), "DIR")
    }
}

/// Times differ from run to run.
fn without_times(text: &str) -> String {
    let mut parts = text.split("\"us\":");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "\"us\":N" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// How long ago something was, and how long was waited.
fn without_ages(text: &str) -> String {
    let line = |line: &str| {
        let age = line.strip_suffix(" ago").and_then(|line| line.rsplit_once("  "));
        let wait = line.strip_suffix(" s").and_then(|line| line.rsplit_once(" after "));
        match (age, wait) {
            (Some((line, _)), _) => format!("{line}  AGE\n"),
            (_, Some((line, _))) => format!("{line} after TIME\n"),
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

/// A command that runs.
pub(crate) struct Running<'a> {
    pub(crate) host: &'a Host,
    pub(crate) child: Child,
    /// The machine process.
    pub(crate) machine: Pid,
}

impl Running<'_> {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end, asserts that nothing is left behind, and shows how it ended.
    pub(crate) fn ends(mut self, expect: &Expect) {
        drop(self.child.stdin.take());
        let machine = self.machine;
        let output = self.child.wait_with_output().unwrap();
        expect.assert_eq(&self.host.show(&output));
        self.host.assert_clean();
        assert_gone(machine);
    }
}

/// The machine process ends, too.
pub(crate) fn assert_gone(machine: Pid) {
    wait_until("the machine process ends", || test_kill_process(machine).is_err() || is_zombie(machine));
}

/// It has ended, and whoever inherited it has not looked yet.
fn is_zombie(process: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

pub(crate) fn show_status(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (_, signal) => format!("signal {signal:?}"),
    }
}

/// Waits for a fact. What does not come in a minute is not coming.
pub(crate) fn wait_until(what: &str, fact: impl Fn() -> bool) {
    let begun = Instant::now();
    while !fact() {
        assert!(begun.elapsed() < Duration::from_secs(60), "in vain: {what}");
        std::thread::yield_now();
    }
}

/// A key pair's public half.
pub(crate) fn write_key(path: &Path) {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGuQ2TjWzWpDE1Kf8ozkA7FZ5qXr4k9oDmJjKz0h0f3E me@here\n";
    std::fs::write(path, key).unwrap();
}
