//! Guests that mean harm. Whatever they do, the machine process neither panics nor spins: when they have
//! done it, it answers, rests while they do, has logged little, and ends when it is told to.

mod attacks;
pub(crate) mod driver;
mod registers;
pub(crate) mod script;

use std::{
    fs::{self, File},
    io::Read,
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use ec2vmm_vmm_api::{
    config::{Disk, Format, Layer, RateLimit, Vsock},
    control::Metrics,
};
use rustix::{
    event::{PollFd, PollFlags},
    process::PidfdFlags,
};

use crate::{
    machine::{self, Machine},
    put_power, request,
};
use script::Script;

pub(crate) use attacks::reboot_at_work;

// Where the devices are.
const RNG: u8 = 1;
pub(crate) const BALLOON: u8 = 2;
const VSOCK: u8 = 3;
const PVPANIC: u8 = 4;
const BLOCK: u8 = 5;

const DISK_FD: i32 = 20;
const VSOCK_FD: i32 = 21;
const DISK_BYTES: u64 = 1 << 20;

/// Plays an attack to its end, and looks at what has become of the machine. Returns its counters.
fn survives(attack: Script) -> Metrics {
    let mut machine = with_devices(&attack.kernel());
    let mut said = [0; 1];
    while said != *b"." {
        machine.console.read_exact(&mut said).expect("the attack is played to its end");
    }
    let answer = request(&machine, "GET /machine HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = request(&machine, "GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n");
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let metrics = serde_json::from_str(body).unwrap();
    rests(machine.process.id());
    let log = machine.log();
    assert!(!log.contains("panicked at"), "{log}");
    assert!(log.len() < LOG_BYTES_MAX, "{} bytes were logged: {log}", log.len());
    assert!(put_power(&machine, "power_off").starts_with("HTTP/1.1 204"));
    assert_eq!(machine.wait().code(), Some(0));
    metrics
}

/// A machine with a disk and sockets beside what every machine has.
pub(crate) fn with_devices(kernel: &[u8]) -> Machine {
    let mut config = machine::config();
    let layers = vec![Layer { fd: DISK_FD, format: Format::Raw }];
    let serial = "hostile".to_owned();
    config.disks = vec![Disk {
        layers,
        read_only: false,
        scratch: false,
        serial,
        queues: Some(1),
        rate_limit: RateLimit::default(),
    }];
    config.vsock = Some(Vsock { cid: 3, listener: VSOCK_FD });
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(DISK_BYTES).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let sockets = UnixListener::bind(folder.path().join("vsock")).unwrap();
    let files = vec![(File::into(disk), DISK_FD), (sockets.into(), VSOCK_FD)];
    Machine::start_with_files(&config, kernel, files)
}

/// Waits until the process has nothing to do: for a while, none of its threads has run for more than it
/// takes to look around.
fn rests(pid: u32) {
    let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let process = rustix::process::pidfd_open(process, PidfdFlags::empty()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut before = run_time(pid);
    loop {
        let mut end = [PollFd::new(&process, PollFlags::IN)];
        let ended = rustix::event::poll(&mut end, Some(&A_WHILE.try_into().unwrap())).unwrap();
        assert_eq!(ended, 0, "the process has ended");
        let now = run_time(pid);
        if now.saturating_sub(before) < A_WHILE / 50 {
            return;
        }
        assert!(Instant::now() < deadline, "the process never rests: {now:?}, {before:?} before");
        before = now;
    }
}

/// What all threads of a process have run.
fn run_time(pid: u32) -> Duration {
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().map(Duration::from_nanos).ok()
    };
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(|task| of(task.unwrap())).sum()
}

/// How long a process that does nothing is looked at.
const A_WHILE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(60);
/// A few dozen lines.
const LOG_BYTES_MAX: usize = 16 * 1024;
