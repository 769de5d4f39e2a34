//! A machine process that does what a test says. It is this test program itself, started again to run the
//! one ignored test below, by a script that the variable `EC2VMM_VMM` names.
//!
//! The part is a list of steps, one a line:
//!
//! | step | what it does |
//! |---|---|
//! | `print TEXT` | writes a line to the console |
//! | `flood N` | writes N numbered lines to the console |
//! | `echo` | gives back what comes from the console, until `q` comes |
//! | `event JSON` | writes an event |
//! | `log TEXT` | writes a line to standard error |
//! | `serve` | answers one request on the control socket, and prints its first and last line |
//! | `wait` | waits until the lifeline is let go, prints `released`, ends with status 3 |
//! | `stuck` | waits for ever |
//! | `exit N` | ends with status N |
//! | `crash` | ends by signal 4 |
//! | `forbidden` | ends by signal 31, as one that its sandbox kills |

// The descriptors come by number.
#![allow(unsafe_code, reason = "inherited descriptors")]

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::exit,
};

use ec2vmm_host::testing::die_by_a_filter;
use ec2vmm_vmm_api::MachineConfig;

/// Names the test below.
pub(crate) const TEST: &str = "fake::plays_its_part";
/// Holds the part.
pub(crate) const PART: &str = "EC2VMM_FAKE_PART";
/// Names the file that the configuration is copied to; beside it, with `.pid`, the process says who it is.
pub(crate) const CONFIG: &str = "EC2VMM_FAKE_CONFIG";

#[test]
#[ignore = "not a test: the machine process of the others"]
fn plays_its_part() {
    let Ok(part) = std::env::var(PART) else { return };
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    if let Ok(path) = std::env::var(CONFIG) {
        // In its own namespace it is the first; out here it has another number.
        let pid = std::fs::read_link("/proc/self").unwrap();
        std::fs::write(format!("{path}.pid"), pid.to_str().unwrap()).unwrap();
        // Whoever waits for the file must never see half of it.
        std::fs::write(format!("{path}.new"), &text).unwrap();
        std::fs::rename(format!("{path}.new"), path).unwrap();
    }
    let config: MachineConfig = serde_json::from_str(&text).unwrap();
    assert_eq!(config.version, ec2vmm_vmm_api::VERSION);
    let mut console = UnixStream::from(own(config.console.unwrap()));
    let mut events = File::from(own(config.events.unwrap()));
    let mut lifeline = File::from(own(config.lifeline.unwrap()));
    let control = UnixListener::from(own(config.control.unwrap()));
    for step in part.lines() {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        match verb {
            "print" => write!(console, "{rest}\r\n").unwrap(),
            "flood" => flood(&console, rest.parse().unwrap()),
            "echo" => echo(&mut console),
            "event" => writeln!(events, "{rest}").unwrap(),
            "log" => writeln!(std::io::stderr(), "{rest}").unwrap(),
            "serve" => serve(&control, &mut console),
            "wait" => {
                assert_eq!(lifeline.read(&mut [0]).unwrap(), 0);
                // Nobody may be left to read it.
                let _ = write!(console, "released\r\n");
                exit(3);
            }
            "stuck" => loop {
                std::thread::park();
            },
            "exit" => exit(rest.parse().unwrap()),
            // Of a signal that it sent itself, the first process of a namespace would not die.
            // SAFETY: the instruction does nothing but end the process.
            "crash" => unsafe { std::arch::asm!("ud2") },
            "forbidden" => die_by_a_filter(),
            other => panic!("no such step: {other}"),
        }
    }
    exit(0)
}

fn flood(console: &UnixStream, lines: u64) {
    let mut console = BufWriter::with_capacity(1 << 16, console);
    for line in 0..lines {
        write!(console, "line {line}\r\n").unwrap();
    }
    console.flush().unwrap();
}

fn echo(console: &mut UnixStream) {
    let mut byte = [0];
    while console.read(&mut byte).unwrap() == 1 && byte != *b"q" {
        console.write_all(&byte).unwrap();
    }
}

fn serve(control: &UnixListener, console: &mut UnixStream) {
    let (mut client, _) = control.accept().unwrap();
    let mut request = BufReader::new(client.try_clone().unwrap());
    let mut first = String::new();
    request.read_line(&mut first).unwrap();
    let mut line = String::new();
    let mut length = 0;
    while request.read_line(&mut line).unwrap() > 2 {
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    request.read_exact(&mut body).unwrap();
    client.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    write!(console, "{} {}\r\n", first.trim_end(), String::from_utf8(body).unwrap()).unwrap();
}

fn own(fd: RawFd) -> OwnedFd {
    assert!(rustix::fs::fcntl_getfl(borrow(fd)).is_ok(), "descriptor {fd} is open");
    // SAFETY: it is open, and the configuration names each descriptor once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn borrow<'a>(fd: RawFd) -> std::os::fd::BorrowedFd<'a> {
    // SAFETY: used at once, and a number that is not open is an error there.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}
