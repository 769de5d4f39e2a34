//! Machine processes, started as the daemon and as `ec2vmm run` start them.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ec2vmm_host::{
    cgroups::OwnGroup,
    machine::{Boot, Machine, MemoryBackend, Newborn, Parts, Restore, Ways},
    sandbox::{Sandbox, SandboxKind, empty_network},
    sockets,
};
use ec2vmm_vmm::userfault::Userfault;
use ec2vmm_vmm_api::{
    Event,
    config::{Balloon, Entropy, Identity},
};

use crate::{
    guests,
    machine::{elf, exchange},
};

/// The machine process.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_ec2vmm-vmm");
/// User and group id.
pub(crate) const ID: u32 = 1_879_050_000;

/// A machine that outlives its owner, like the daemon's; here it is ended when dropped.
pub(crate) struct Kept {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) folder: tempfile::TempDir,
}

/// Whether this test can be: says so if not.
pub(crate) fn is_possible() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let can = is_root && Path::new("/dev/kvm").exists() && empty_network().is_ok();
    if !can {
        eprintln!("SKIPPED: not root, no /dev/kvm, or no namespaces");
    }
    can
}

/// Whether memory can be brought in page by page here.
pub(crate) fn has_userfaultfd() -> bool {
    let device = ec2vmm_host::userfaultfd::open().unwrap();
    let made = Userfault::new(device.as_ref().map(AsFd::as_fd));
    if let Err(error) = &made {
        eprintln!("SKIPPED: {error}");
    }
    made.is_ok()
}

pub(crate) fn parts(sandbox: Sandbox, guest: &[u8], control: Option<OwnedFd>) -> Parts {
    let mut kernel = tempfile::tempfile().unwrap();
    kernel.write_all(&elf(guest)).unwrap();
    kernel.rewind().unwrap();
    Parts {
        kvm: OpenOptions::new().read(true).write(true).open("/dev/kvm").unwrap(),
        sandbox,
        identity: Identity {
            uuid: "6ba7b810-9dad-11d1-80b4-00c04fd430c8".parse().unwrap(),
            manufacturer: "ec2vmm".into(),
            product: "tiny".into(),
            asset_tag: None,
        },
        cpus: 2,
        memory_mib: 64,
        huge_pages: false,
        boot: Boot::Files { kernel, initrd: None, cmdline: String::new() },
        restore: None,
        disks: vec![],
        nets: vec![],
        balloon: Balloon::default(),
        entropy: Entropy::default(),
        vsock: None,
        control,
    }
}

/// A snapshot to go on from.
pub(crate) fn snapshot(network: &OwnedFd) -> [File; 2] {
    let files = [(); 2].map(|()| tempfile::tempfile().unwrap());
    let machine = Kept::start(parts(full(network), guests::idle(), None));
    let request =
        "POST /machine/snapshot HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
    let control = UnixStream::connect(machine.path("control")).unwrap();
    let answer = exchange(control, request, &files.each_ref().map(AsFd::as_fd));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    files
}

/// A snapshot whose memory is brought in when it is touched.
pub(crate) fn paged(state: &File, memory: &File, prefetch: Option<&File>, record: Option<&File>) -> Restore {
    let open = |file: &File| file.try_clone().unwrap();
    Restore {
        state: open(state),
        memory: vec![open(memory)],
        backend: MemoryBackend::Userfaultfd {
            device: ec2vmm_host::userfaultfd::open().unwrap(),
            prefetch: prefetch.map(open),
            record: record.map(open),
        },
    }
}

/// As the daemon's are, with `network` held by it.
pub(crate) fn full(network: &OwnedFd) -> Sandbox {
    Sandbox::of(SandboxKind::Full, ID, Some(network.try_clone().unwrap()))
}

impl Kept {
    /// Started, and not yet told what to be.
    pub(crate) fn newborn(mut parts: Parts) -> (Newborn, Self) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let file = |name: &str| {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path(name)).unwrap()
        };
        parts.control = Some(sockets::listen_named(&path("control")).unwrap());
        let ways = Ways {
            console_log: Some(file("console-log").into()),
            console_listener: Some(sockets::listen_named(&path("console")).unwrap()),
            record: Some(file("record").into()),
            ..Ways::default()
        };
        let newborn = Newborn::start(Path::new(PROGRAM), &[], parts, ways, &file("log")).unwrap();
        let kept = Self { pid: newborn.pid(), pidfd: newborn.pidfd().unwrap(), folder };
        (newborn, kept)
    }

    /// Runs.
    pub(crate) fn start(parts: Parts) -> Self {
        let (newborn, kept) = Self::newborn(parts);
        newborn.tell().unwrap();
        kept.wait_until_running();
        kept
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The last event.
    pub(crate) fn record(&self) -> Option<Event> {
        serde_json::from_slice(&std::fs::read(self.path("record")).unwrap()).ok()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    pub(crate) fn wait_until_running(&self) {
        wait_until(|| {
            let record = self.record();
            let has_ended = matches!(record, Some(Event::Ended { .. })) || self.is_dead();
            assert!(!has_ended, "{record:?}\n{}\n{:?}", self.log(), self.violation());
            matches!(record, Some(Event::Running { .. }))
        });
    }

    /// It has ended, and was not waited for.
    pub(crate) fn is_dead(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        !stat.contains(") ") || stat.contains(") Z ")
    }

    /// What is told if its sandbox has killed it.
    pub(crate) fn violation(&self) -> Option<ec2vmm_vmm_api::Failure> {
        let status = std::os::unix::process::ExitStatusExt::from_raw(libc::SIGSYS);
        ec2vmm_host::violation::failure(self.pid, status)
    }

    /// Waits for its end, and says by which signal, if it was one.
    pub(crate) fn signal(&self) -> Option<i32> {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let mut signal = None;
        wait_until(|| {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let status = waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(&self.pidfd)), options).unwrap();
            signal = status.as_ref().and_then(rustix::process::WaitIdStatus::terminating_signal);
            status.is_some()
        });
        signal
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // One that has ended cannot be killed, and need not be.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
    }
}

/// One that belongs to its owner, like that of `ec2vmm run`, and runs.
pub(crate) fn run(parts: Parts, group: Option<OwnGroup>) -> Machine {
    let machine = Machine::start(Path::new(PROGRAM), &[], parts, group).unwrap();
    rustix::io::ioctl_fionbio(&machine.events, false).unwrap();
    let mut events = BufReader::new(File::from(machine.events.try_clone().unwrap()));
    let mut said = String::new();
    while !said.contains("\"running\"") {
        let read = events.read_line(&mut said).unwrap();
        if read == 0 {
            rustix::io::ioctl_fionbio(&machine.log, false).unwrap();
            let mut log = String::new();
            File::from(machine.log.try_clone().unwrap()).read_to_string(&mut log).unwrap();
            panic!("it does not run: {said}{log}");
        }
    }
    machine
}

/// Waits for a fact.
pub(crate) fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never comes to be");
        std::thread::yield_now();
    }
}
