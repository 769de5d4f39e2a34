//! A machine as its user has it: an `ec2vmm run` process, its console, its events.
//!
//! Each has a temporary folder of its own. Where it ends well, nothing may be left in it; where a test
//! fails, the end of the console is printed.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use ec2vmm_vmm_api::{Event, control};
use tempfile::TempDir;

use crate::{
    place, progress,
    transcript::{Missing, Transcript},
};

/// How long anything may take: a lab on a busy host is slow.
pub(crate) fn patience() -> Duration {
    let wanted = std::env::var("EC2VMM_TEST_PATIENCE").ok();
    Duration::from_secs(
        wanted.map_or(600, |seconds| seconds.parse().expect("EC2VMM_TEST_PATIENCE in seconds")),
    )
}

/// A command line to be.
pub(crate) struct Plan {
    command: Command,
    folder: TempDir,
}

impl Plan {
    /// `ec2vmm run` with `words`.
    pub(crate) fn new(words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let folder = tempfile::Builder::new().prefix("ec2vmm-test.").tempdir().unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        let mut command = Command::new(place::program("ec2vmm"));
        command.arg("run").args(words).env("TMPDIR", folder.path().join("tmp"));
        Self { command, folder }
    }

    /// `ec2vmm run IMAGE`, where it will have a control socket.
    pub(crate) fn boot(image: &Path) -> Self {
        let plan = Self::new([image]);
        let control = plan.path("control");
        plan.args(["--json", "--control-socket"]).arg(control)
    }

    pub(crate) fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.command.arg(word);
        self
    }

    pub(crate) fn args(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(words);
        self
    }

    /// A path in the machine's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts it, with console and events each on a pipe.
    pub(crate) fn start(mut self) -> Machine {
        progress::step("starting a machine");
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        let events = Transcript::of(child.stdout.take().unwrap());
        let console = Transcript::of(child.stderr.take().unwrap());
        let input = child.stdin.take().unwrap();
        Machine { child, input, console, events, folder: self.folder, heard: 0, told: 0, ended: false }
    }
}

/// A running machine.
pub(crate) struct Machine {
    child: Child,
    input: ChildStdin,
    pub(crate) console: Transcript,
    events: Transcript,
    folder: TempDir,
    /// How far the console was looked at.
    heard: usize,
    /// How far the events were.
    told: usize,
    ended: bool,
}

impl Machine {
    /// Waits for `text` on the console, after what was waited for before.
    pub(crate) fn wait_for(&mut self, text: &str) {
        progress::step(&format!("waiting for {text:?} on the console"));
        let found = self.console.wait(self.heard, patience(), |seen| seen.find(text));
        match found {
            Ok(_) => self.heard = self.end_of(text),
            Err(missing) => panic!("no {text:?} on the console: {missing}"),
        }
    }

    /// Where `text`, which was seen, ends. In bytes: the lossy text may be longer than what came.
    fn end_of(&self, text: &str) -> usize {
        let bytes = self.console.bytes_from(self.heard);
        let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
        self.heard + at + text.len()
    }

    /// Waits for an event, after those that were waited for before.
    pub(crate) fn wait_for_event<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        progress::step("waiting for an event");
        let found = self.events.wait(self.told, patience(), |seen| {
            let mut end = 0;
            for line in seen.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                end += line.len();
                let event = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
                if let Some(found) = wanted(&event) {
                    return Some((end, found));
                }
            }
            None
        });
        let (end, found) = found.unwrap_or_else(|missing| {
            panic!("no such event: {missing}; events: {}", self.events.text_from(0))
        });
        self.told += end;
        found
    }

    /// Writes to the console.
    pub(crate) fn type_line(&mut self, line: &str) {
        // A machine that has ended reads no more: what is waited for next tells.
        let _ = self.input.write_all(format!("{line}\n").as_bytes());
    }

    /// From the prompt of a root shell: makes it one that neither prompts nor echoes.
    pub(crate) fn quiet_shell(&mut self) {
        self.wait_for("# ");
        self.type_line(
            "exec sh -c 'stty -echo; echo qui\"\"et; while read -r line; do eval \"$line\"; done'",
        );
        self.wait_for("quiet\r\n");
    }

    /// Runs a command line in the guest's quiet shell; gives its output.
    pub(crate) fn sh(&mut self, command: &str) -> String {
        let (status, output) = self.try_sh(command);
        assert_eq!(status, 0, "the guest's `{command}` failed: {output}");
        output
    }

    /// Runs a command line in the guest's quiet shell; gives its status and output.
    pub(crate) fn try_sh(&mut self, command: &str) -> (u8, String) {
        self.type_line(&format!("( {command} ) </dev/null 2>&1; echo \"{MARK}$?{MARK}\""));
        let output = self.text_before_mark();
        let status = self.text_before_mark().parse();
        (status.expect("a status between two marks"), output.trim().to_owned())
    }

    fn text_before_mark(&mut self) -> String {
        let start = self.heard;
        self.wait_for(MARK);
        let text = self.console.text_from(start);
        text.split(MARK).next().unwrap_or_default().replace('\r', "")
    }

    /// Types a command whose end nobody will see, such as `poweroff`.
    pub(crate) fn last_words(&mut self, command: &str) {
        self.type_line(command);
    }

    /// Waits for the command's end; nothing may be left behind. Gives its exit status.
    pub(crate) fn end(mut self) -> i32 {
        let process = self.process();
        let status = self.wait_for_exit();
        self.assert_nothing_left(process);
        status
    }

    /// Waits for the command's end after its machine process was killed; gives all of the console.
    pub(crate) fn end_of_killed(mut self) -> String {
        let status = self.wait_for_exit();
        assert_eq!(status, 1, "the status of a command whose machine process was killed");
        self.assert_nothing_left(None);
        self.console.text_from(0)
    }

    /// From what was waited for to the end of its line.
    pub(crate) fn rest_of_line(&mut self) -> String {
        let start = self.heard;
        self.wait_for("\n");
        self.console.text_from(start).lines().next().unwrap_or_default().to_owned()
    }

    fn wait_for_exit(&mut self) -> i32 {
        progress::step("waiting for the end of a machine");
        // Its outputs end with it.
        for stream in [&self.console, &self.events] {
            if let Err(Missing::TooLate(within)) = stream.wait(0, patience(), |_| None::<()>) {
                panic!("ec2vmm did not end within {} s", within.as_secs());
            }
        }
        let status = self.child.wait().unwrap();
        self.ended = true;
        std::os::unix::process::ExitStatusExt::signal(&status)
            .map_or_else(|| status.code().unwrap(), |n| 128 + n)
    }

    fn assert_nothing_left(&self, process: Option<u32>) {
        if let Some(process) = process {
            assert!(!is_machine(process), "the machine process {process} outlived its command");
        }
        let left: Vec<_> = fs::read_dir(self.folder.path().join("tmp"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "left behind");
        assert!(!self.folder.path().join("control").exists(), "the control socket was left behind");
    }

    /// The command's process.
    pub(crate) fn command_process(&self) -> u32 {
        self.child.id()
    }

    /// The machine process, once there is one.
    pub(crate) fn process(&self) -> Option<u32> {
        let of_command = |pid: &u32| parent(*pid) == Some(self.child.id()) && is_machine(*pid);
        processes().find(of_command)
    }

    /// A path in the machine's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `GET /machine`.
    pub(crate) fn view(&self) -> control::Machine {
        serde_json::from_str(&self.request("GET", "/machine", "")).unwrap()
    }

    /// `PUT /machine/power`.
    pub(crate) fn power(&self, action: control::PowerAction) {
        let body = serde_json::to_string(&control::PowerRequest::from(action)).unwrap();
        self.request("PUT", "/machine/power", &body);
    }

    /// Asks the control socket; gives the body of a good answer.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> String {
        let (head, body) = self.ask(method, path, body);
        assert!(head.starts_with("HTTP/1.1 20"), "{method} {path}: {head}\n{body}");
        body
    }

    /// Asks the control socket for what it refuses; gives the body of the answer.
    pub(crate) fn refused(&self, method: &str, path: &str, body: &str) -> String {
        let (head, body) = self.ask(method, path, body);
        assert!(head.starts_with("HTTP/1.1 4"), "{method} {path}: {head}\n{body}");
        body
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (String, String) {
        progress::step(&format!("{method} {path}"));
        let mut stream = UnixStream::connect(self.path("control")).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let answer = std::io::read_to_string(stream).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = self.console.text_from(0);
            let tail = text.char_indices().rev().nth(TAIL_CHARS).map_or(0, |(at, _)| at);
            eprintln!(
                "--- the end of the console ---\n{}\n--- events ---\n{}---",
                &text[tail..],
                self.events.text_from(0)
            );
        }
        if !self.ended {
            // The machine process ends with it.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits until `look` finds something: for facts that nothing announces.
pub(crate) fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    progress::step(what);
    let deadline = Instant::now() + patience();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {} s", patience().as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Whether this process is a machine, and no zombie.
pub(crate) fn is_machine(process: u32) -> bool {
    fs::read_link(format!("/proc/{process}/exe"))
        .is_ok_and(|program| program.file_name() == Some(OsStr::new("ec2vmm-vmm")))
}

const MARK: &str = "=@=";
const TAIL_CHARS: usize = 6000;
