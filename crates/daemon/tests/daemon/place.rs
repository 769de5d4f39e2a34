//! A folder for a daemon, and what clients and systemd see of it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) socket: PathBuf,
    /// What systemd would be told.
    pub(crate) notices: UnixDatagram,
}

/// A daemon that is killed with the test.
pub(crate) struct Daemon(pub(crate) Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let notices = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        notices.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket: folder.path().join("run/ec2vmmd.sock"), folder, notices }
    }

    pub(crate) fn command(&self) -> Command {
        self.command_of(env!("CARGO_BIN_EXE_ec2vmmd").into())
    }

    pub(crate) fn command_of(&self, program: PathBuf) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.path();
        command.args(["--host", "simulated"]);
        command.arg("--state-dir").arg(folder.join("state")).arg("--run-dir").arg(folder.join("run"));
        command.env("NOTIFY_SOCKET", folder.join("notify")).stdin(Stdio::null());
        command
    }

    /// A daemon that takes requests.
    pub(crate) fn start(&self) -> Daemon {
        self.start_as(&mut self.command())
    }

    pub(crate) fn start_as(&self, command: &mut Command) -> Daemon {
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let daemon = Daemon(command.stderr(log).spawn().unwrap());
        self.notice("READY=1");
        daemon
    }

    /// Waits until systemd is told this.
    pub(crate) fn notice(&self, wanted: &str) {
        let mut told = vec![0; 4096];
        loop {
            let length = self.notices.recv(&mut told).unwrap_or_else(|error| {
                panic!("{wanted} was not told: {error}\n{}", self.log());
            });
            if String::from_utf8_lossy(&told[..length]).lines().any(|line| line == wanted) {
                return;
            }
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        self.ask("GET", path, None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        self.ask("POST", path, Some(body))
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let mut stream = self.connect();
        let body = body.map(ToString::to_string).unwrap_or_default();
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{kind}content-length: {length}\r\n\r\n"
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) =
            answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {}", self.log()));
        assert!(head.starts_with("HTTP/1.1 2"), "{answer}");
        if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() }
    }

    /// An image, and an instance that runs: its id.
    pub(crate) fn furnish(&self) -> String {
        let image = json!({"name": "minimal", "file": "disk.raw", "format": "raw", "login_user": "root"});
        self.post("/v1/images", &image);
        let launch = json!({"image": "minimal", "instance_type": "t3.nano"});
        let launched = self.post("/v1/instances", &launch);
        let id = launched["instances"][0]["instance_id"].as_str().unwrap().to_owned();
        self.until(&id, "running");
        id
    }

    /// Waits until an instance is in this state.
    pub(crate) fn until(&self, id: &str, state: &str) -> Value {
        let mut stream = self.events(0);
        loop {
            let instance = self.get(&format!("/v1/instances/{id}"));
            if instance["state"] == state {
                return instance;
            }
            next_event(&mut stream).expect("an event");
        }
    }

    /// Events after that one.
    pub(crate) fn events(&self, after: u64) -> BufReader<UnixStream> {
        let mut stream = self.connect();
        let request = format!("GET /v1/events/stream HTTP/1.1\r\nhost: x\r\nlast-event-id: {after}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        BufReader::new(stream)
    }
}

/// The next event; nothing at the end of the stream.
pub(crate) fn next_event(stream: &mut BufReader<UnixStream>) -> Option<Value> {
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        if let Some(data) = line.strip_prefix("data: ") {
            return Some(serde_json::from_str(data).unwrap());
        }
    }
}

impl Daemon {
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap();
        let end = Instant::now() + DEADLINE;
        let left = rustix::time::Timespec { tv_sec: DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let ready = rustix::event::poll(&mut fds, Some(&left)).unwrap();
        assert!(ready == 1 && Instant::now() < end + DEADLINE, "the daemon does not end");
        self.0.wait().unwrap()
    }
}

/// For hangs, not for slowness.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
