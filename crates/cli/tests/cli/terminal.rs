//! On a terminal: raw mode and back, and the keys that are not for the guest.

use std::{
    fs::File,
    io::{Read, Write},
    path::PathBuf,
    process::Command,
};

use rustix::{
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use crate::host::{Host, Running, assert_gone, show_status};

#[test]
fn leaving_by_key() {
    let host = Host::new("print login:\nwait");
    let mut session = Session::start(&host, "disk.raw");
    session.expect("login:");
    assert!(session.terminal.is_raw());
    session.type_in(b"\x01h");
    session.expect("Ctrl-A p");
    session.type_in(b"\x01x");
    session.ends("status 0");
}

#[test]
fn keys_reach_the_guest() {
    let host = Host::new("print login:\necho\nexit 0");
    let mut session = Session::start(&host, "disk.raw");
    session.expect("login:");
    session.type_in(b"one\x01\x01two\x03\x1a");
    session.expect("one\x01two\x03\x1a");
    session.type_in(b"q");
    session.ends("status 0");
}

#[test]
fn the_power_button() {
    let host = Host::new("print login:\nserve\nexit 0");
    let mut session = Session::start(&host, "disk.raw");
    session.expect("login:");
    session.type_in(b"\x01p");
    session.expect(r#"PUT /machine/power HTTP/1.1 {"action":"power_button"}"#);
    session.ends("status 0");
}

#[test]
fn every_ending_gives_the_terminal_back() {
    for (part, signal, status) in [
        ("print up\nexit 0", None, "status 0"),
        ("print up\ncrash", None, "status 1"),
        ("print up\nwait", Some(Signal::TERM), "status 143"),
        ("print up\nwait", Some(Signal::INT), "status 130"),
        ("print up\nwait", Some(Signal::HUP), "status 129"),
        ("print up\nwait", Some(Signal::QUIT), "status 131"),
    ] {
        let host = Host::new(part);
        let mut session = Session::start(&host, "disk.raw");
        session.expect("up");
        if let Some(signal) = signal {
            session.running.signal(signal);
        }
        session.ends(status);
    }
    let host = Host::new("print up\nwait");
    let session = Session::start(&host, "disk.raw --timeout 300ms");
    session.ends("status 124");
}

#[test]
fn log_lines_do_not_make_stairs() {
    let host = Host::new("print up\nlog one\nlog two\necho\nexit 0");
    let mut session = Session::start(&host, "disk.raw");
    session.expect("two\r\n");
    assert!(session.seen.contains("one\r\ntwo\r\n"), "{:?}", session.seen);
    session.type_in(b"q");
    session.ends("status 0");
}

#[test]
fn with_the_console_elsewhere_the_terminal_is_left_alone() {
    let host = Host::new("wait");
    let session = Session::start(&host, "disk.raw --console console.log");
    assert!(!session.terminal.is_raw());
    // So Ctrl-C is a signal, as with every program.
    session.type_in(b"\x03");
    session.ends("status 130");
}

#[test]
fn a_terminal_that_hangs_up_ends_the_machine() {
    let host = Host::new("print up\nwait");
    let mut session = Session::start(&host, "disk.raw");
    session.expect("up");
    let Session { mut running, terminal, .. } = session;
    drop(terminal);
    assert_eq!(show_status(running.child.wait().unwrap()), "status 129");
    assert_gone(running.machine);
}

#[test]
fn a_terminal_that_only_shows_hangs_up_like_any_other() {
    let host = Host::new("print up\nwait");
    let terminal = Terminal::open();
    let mut running = host.spawn(host.run("disk.raw").stdout(terminal.slave()));
    let mut seen = String::new();
    terminal.read_until(&mut seen, "up");
    drop(terminal);
    assert_eq!(show_status(running.child.wait().unwrap()), "status 129");
    assert_gone(running.machine);
}

/// The command on a terminal of its own.
struct Session<'a> {
    running: Running<'a>,
    terminal: Terminal,
    seen: String,
}

impl<'a> Session<'a> {
    fn start(host: &'a Host, words: &str) -> Self {
        let terminal = Terminal::open();
        let running = host.spawn(&mut terminal.command(&host.run(words)));
        Self { running, terminal, seen: String::new() }
    }

    fn type_in(&self, keys: &[u8]) {
        self.terminal.type_in(keys);
    }

    /// Reads until this has been seen.
    fn expect(&mut self, text: &str) {
        self.terminal.read_until(&mut self.seen, text);
    }

    fn ends(mut self, status: &str) {
        // A terminal that nobody reads could hold up the last words.
        let reader = self.terminal.drain();
        assert_eq!(show_status(self.running.child.wait().unwrap()), status, "{}", self.seen);
        assert_eq!(self.terminal.mode(), self.terminal.found);
        assert_gone(self.running.machine);
        self.running.host.assert_clean();
        drop(self.terminal);
        reader.join().unwrap();
    }
}

/// A terminal of a test's own.
pub(crate) struct Terminal {
    master: File,
    /// Held, so that the terminal does not hang up when the command ends.
    slave: Option<File>,
    path: PathBuf,
    /// The mode in which it was made.
    pub(crate) found: String,
}

impl Terminal {
    pub(crate) fn open() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = PathBuf::from(ptsname(&master, Vec::new()).unwrap().into_string().unwrap());
        let slave = rustix::fs::open(
            &path,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        );
        let mut terminal =
            Self { master: master.into(), slave: Some(slave.unwrap().into()), path, found: String::new() };
        terminal.found = terminal.mode();
        terminal
    }

    /// A command like that one, in a session of its own on this terminal.
    pub(crate) fn command(&self, like: &Command) -> Command {
        // setsid(1) makes a session, and the first terminal that it opens is its controlling one.
        let mut command = Command::new("setsid");
        command.args([
            "sh",
            "-c",
            r#"exec "$@" <"$TTY" >"$TTY" 2>"$TTY""#,
            "sh",
            env!("CARGO_BIN_EXE_ec2vmm"),
        ]);
        command.args(like.get_args()).current_dir(like.get_current_dir().unwrap());
        command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("TTY", &self.path).stdin(std::process::Stdio::null());
        command
    }

    /// For a command whose terminal this shall be, but not its controlling one.
    fn slave(&self) -> File {
        self.slave.as_ref().unwrap().try_clone().unwrap()
    }

    pub(crate) fn resize(&self, columns: u16) {
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
    }

    pub(crate) fn type_in(&self, keys: &[u8]) {
        (&self.master).write_all(keys).unwrap();
    }

    pub(crate) fn read_until(&self, seen: &mut String, text: &str) {
        let mut buffer = [0; 1024];
        while !seen.contains(text) {
            let read = (&self.master).read(&mut buffer).unwrap();
            *seen += &String::from_utf8_lossy(&buffer[..read]);
        }
    }

    /// Reads what is still to come, so that nobody waits for a reader.
    pub(crate) fn drain(&self) -> std::thread::JoinHandle<()> {
        let mut master = self.master.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut rest = Vec::new();
            // EIO at the end, when the last slave is closed.
            let _ = master.read_to_end(&mut rest);
        })
    }

    pub(crate) fn mode(&self) -> String {
        format!("{:?}", tcgetattr(self.slave.as_ref().unwrap()).unwrap())
    }

    pub(crate) fn is_raw(&self) -> bool {
        let mode = tcgetattr(self.slave.as_ref().unwrap()).unwrap();
        !mode.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}
