//! The control daemon as its user has it: an `ec2vmmd` process with folders of its own, asked by `ec2vmm`.
//!
//! Where it is dropped, nothing of it may be left on the host: that is checked by [`Daemon::end`].

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    hard_kills::run,
    machine::{patience, poll},
    place, progress,
};

pub(crate) struct Daemon {
    process: Child,
    folder: TempDir,
    options: Vec<String>,
    /// Machine processes of others.
    others: Vec<String>,
}

impl Daemon {
    /// A daemon with nothing to remember, that is ready. Its volumes are in memory where the lab is.
    pub(crate) fn start(options: &[&str]) -> Self {
        let place = std::env::var_os("LAB_STAGE_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = tempfile::Builder::new().prefix("ec2vmmd-test.").tempdir_in(place).unwrap();
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let others = machine_processes();
        let process = spawn(folder.path(), &options);
        let mut daemon = Self { process, folder, options, others };
        daemon.wait_until_ready();
        daemon
    }

    /// Ends it by SIGKILL, wherever it is.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again with what it remembers.
    pub(crate) fn start_again(&mut self) {
        self.process = spawn(self.folder.path(), &self.options);
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        let socket = self.socket();
        poll("the daemon is ready", || {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("ec2vmmd ended: {status}\n{}", self.log());
            }
            let mut ask = Command::new("curl");
            ask.args(["--silent", "--fail", "--unix-socket"]).arg(&socket).arg("http://localhost/readyz");
            ask.output().unwrap().status.success().then_some(())
        });
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("run/ec2vmmd.sock")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The daemon's log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs `ec2vmm WORDS`, whatever comes of it.
    pub(crate) fn try_cli(&self, words: &[&str]) -> Output {
        progress::step(&format!("ec2vmm {}", words.join(" ")));
        let mut command = Command::new(place::program("ec2vmm"));
        command.args(words).env("EC2VMM_SOCKET", self.socket()).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// Runs `ec2vmm WORDS`; gives what it prints.
    pub(crate) fn cli(&self, words: &[&str]) -> String {
        let output = self.try_cli(words);
        assert!(
            output.status.success(),
            "ec2vmm {}: {}\n{}",
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `ec2vmm WORDS --json`; gives the document.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        let text = self.cli(&words);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("ec2vmm {words:?}: {error}: {text}"))
    }

    /// `GET path`.
    pub(crate) fn get(&self, path: &str) -> Value {
        let mut ask = Command::new("curl");
        ask.args(["--silent", "--show-error", "--fail-with-body", "--unix-socket"]).arg(self.socket());
        serde_json::from_str(&run(ask.arg(format!("http://localhost{path}")))).unwrap()
    }

    /// Waits until the instance is in this state.
    pub(crate) fn wait(&self, instance: &str, state: &str) {
        let limit = format!("{}s", patience().as_secs());
        self.cli(&["wait", instance, "--for", state, "--timeout", &limit]);
    }

    /// The instance as it is now.
    pub(crate) fn instance(&self, id: &str) -> Value {
        self.get(&format!("/v1/instances/{id}"))
    }

    /// The process of an instance's machine: the one in its cgroup.
    pub(crate) fn machine_process(&self, instance: &str) -> Option<u32> {
        let found = cgroups().into_iter().find(|path| path.ends_with(instance))?;
        let processes = fs::read_to_string(found.join("cgroup.procs")).unwrap_or_default();
        processes.lines().next().map(|pid| pid.parse().unwrap())
    }

    /// A limit of an instance's cgroup.
    pub(crate) fn limit(&self, instance: &str, file: &str) -> String {
        let found = cgroups().into_iter().find(|path| path.ends_with(instance)).unwrap();
        fs::read_to_string(found.join(file)).unwrap().trim().to_owned()
    }

    /// Ends it by SIGTERM; everything of it must be gone by then, apart from its state.
    pub(crate) fn end(mut self) {
        run(Command::new("kill").arg(self.process.id().to_string()));
        let process = &mut self.process;
        let status = poll("the daemon ends", || process.try_wait().unwrap());
        assert!(status.success(), "ec2vmmd: {status}\n{}", self.log());
        assert_eq!(machine_processes(), self.others, "machine processes");
        assert_eq!(cgroups(), Vec::<PathBuf>::new(), "cgroups of instances");
        fs::remove_dir(CGROUP).unwrap();
        assert_eq!(taps(), Vec::<String>::new(), "taps");
        assert_eq!(left_in(&self.folder.path().join("state/volumes")), Vec::<String>::new(), "volumes");
        assert_eq!(left_in(&self.folder.path().join("run/machines")), Vec::<String>::new(), "machines");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}\n---", self.log());
        }
        // It is gone already, where the test came to its end.
        let _ = self.process.kill();
        let _ = self.process.wait();
        for cgroup in cgroups() {
            // So is this.
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        }
    }
}

fn spawn(folder: &Path, options: &[String]) -> Child {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let mut command = Command::new(place::program("ec2vmmd"));
    command.arg("--host").arg("linux").arg("--state-dir").arg(folder.join("state"));
    command.arg("--run-dir").arg(folder.join("run")).arg("--cgroup").arg(CGROUP).args(options);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// cgroups of instances.
pub(crate) fn cgroups() -> Vec<PathBuf> {
    let found = Command::new("find").args([CGROUP, "-type", "d", "-name", "i-*"]).output().unwrap();
    String::from_utf8_lossy(&found.stdout).lines().map(PathBuf::from).collect()
}

/// Of the tests alone: a daemon takes what it finds in its cgroup for its own.
const CGROUP: &str = "/sys/fs/cgroup/ec2vmm-test";

/// Taps, in all network namespaces.
pub(crate) fn taps() -> Vec<String> {
    let names = run(Command::new("ip").args(["-json", "netns", "list"]));
    let names: Vec<Value> =
        serde_json::from_str(if names.trim().is_empty() { "[]" } else { &names }).unwrap();
    let mut taps = Vec::new();
    for name in names {
        let name = name["name"].as_str().unwrap().to_owned();
        let links = run(Command::new("ip").args(["-n", &name, "-oneline", "tuntap", "list"]));
        taps.extend(links.lines().map(|line| format!("{name}: {line}")));
    }
    taps
}

fn machine_processes() -> Vec<String> {
    let listed = Command::new("pgrep").args(["--list-full", "--exact", "ec2vmm-vmm"]).output().unwrap();
    String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect()
}

fn left_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}
