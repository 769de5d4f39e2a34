//! Runs the machine process on a tiny guest.
//!
//! No wait is endless: a KVM that emulates can hang for good where a VM is destroyed (`srcu_barrier` in the
//! host's kernel), and then neither the process nor who waits for it would ever end.

use std::{
    fs::File,
    io::{BufRead, BufReader, IoSlice, Read, Seek, Write},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::FileExt,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use ec2vmm_vmm_api::{
    Event, MachineConfig, Sandbox, VERSION,
    config::{Balloon, Boot, Entropy, Identity},
    console_log,
};
use rustix::{
    event::{PollFd, PollFlags},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
    process::PidfdFlags,
};

pub(crate) use crate::elf::elf;

const KVM: i32 = 3;
pub(crate) const KERNEL: i32 = 4;
const CONSOLE: i32 = 5;
const EVENTS: i32 = 6;
const LIFELINE: i32 = 7;
const CONTROL: i32 = 8;
const CONSOLE_LOG: i32 = 9;
const CONSOLE_LISTENER: i32 = 10;
const RECORD: i32 = 11;

/// A machine process and our ends of what it holds. Killed when dropped.
pub(crate) struct Machine {
    pub(crate) process: Child,
    pub(crate) console: UnixStream,
    pub(crate) events: BufReader<UnixStream>,
    pub(crate) lifeline: Option<UnixStream>,
    pub(crate) control: PathBuf,
    pub(crate) console_socket: PathBuf,
    console_log: File,
    record: File,
    log: File,
    _folder: tempfile::TempDir,
}

/// A configuration with everything but disks.
pub(crate) fn config() -> MachineConfig {
    MachineConfig {
        version: VERSION,
        kvm: KVM,
        sandbox: Sandbox::Filters,
        identity: Identity {
            uuid: "6ba7b810-9dad-11d1-80b4-00c04fd430c8".parse().unwrap(),
            manufacturer: "ec2vmm".into(),
            product: "tiny".into(),
            asset_tag: None,
        },
        cpus: 1,
        memory_mib: 64,
        huge_pages: false,
        boot: Boot::Files { kernel: KERNEL, initrd: None, cmdline: String::new() },
        restore: None,
        disks: vec![],
        nets: vec![],
        vsock: None,
        balloon: Balloon::default(),
        entropy: Entropy::default(),
        console: Some(CONSOLE),
        console_log: Some(CONSOLE_LOG),
        console_listener: Some(CONSOLE_LISTENER),
        record: Some(RECORD),
        control: Some(CONTROL),
        events: Some(EVENTS),
        lifeline: Some(LIFELINE),
        // Guests here do nothing but what guests in trouble do.
        stuck_after_s: 0,
    }
}

impl Machine {
    pub(crate) fn start(guest: &[u8]) -> Self {
        Self::start_with(&config(), &elf(guest))
    }

    pub(crate) fn start_with(config: &MachineConfig, kernel: &[u8]) -> Self {
        Self::start_with_files(config, kernel, Vec::new())
    }

    /// With further descriptors, each at its number.
    pub(crate) fn start_with_files(
        config: &MachineConfig,
        kernel: &[u8],
        files: Vec<(OwnedFd, i32)>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("control");
        let listener = UnixListener::bind(&control).unwrap();
        let console_socket = folder.path().join("console");
        let console_listener = UnixListener::bind(&console_socket).unwrap();
        let [console_log, record, log] = [(); 3].map(|()| tempfile::tempfile().unwrap());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(kernel).unwrap();
        file.rewind().unwrap();
        let kvm = File::options().read(true).write(true).open("/dev/kvm").expect("/dev/kvm opens");
        let (console, console_inside) = UnixStream::pair().unwrap();
        let (events, events_inside) = UnixStream::pair().unwrap();
        // As small as it can be, so that it takes little to fill it.
        rustix::net::sockopt::set_socket_send_buffer_size(&events_inside, 1).unwrap();
        let (lifeline, lifeline_inside) = UnixStream::pair().unwrap();
        let map = |parent_fd: OwnedFd, child_fd| FdMapping { parent_fd, child_fd };
        let files = files.into_iter().map(|(file, number)| map(file, number));
        let mut process = Command::new(env!("CARGO_BIN_EXE_ec2vmm-vmm"))
            .stdin(Stdio::piped())
            // Not the test's own: one that hangs would keep them open.
            .stdout(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .fd_mappings(
                files
                    .chain([
                        map(kvm.into(), KVM),
                        map(file.into(), KERNEL),
                        map(console_inside.into(), CONSOLE),
                        map(events_inside.into(), EVENTS),
                        map(lifeline_inside.into(), LIFELINE),
                        map(listener.into(), CONTROL),
                        map(console_log.try_clone().unwrap().into(), CONSOLE_LOG),
                        map(console_listener.into(), CONSOLE_LISTENER),
                        map(record.try_clone().unwrap().into(), RECORD),
                    ])
                    .collect(),
            )
            .unwrap()
            .spawn()
            .unwrap();
        for stream in [&console, &events] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        process.stdin.take().unwrap().write_all(&serde_json::to_vec(config).unwrap()).unwrap();
        Self {
            process,
            console,
            events: BufReader::new(events),
            lifeline: Some(lifeline),
            control,
            console_socket,
            console_log,
            record,
            log,
            _folder: folder,
        }
    }

    /// The next event; none when there will be no more.
    pub(crate) fn event(&mut self) -> Option<Event> {
        let mut line = String::new();
        self.events.read_line(&mut line).unwrap();
        let event = (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap());
        match event {
            // Comes first, always.
            Some(Event::Sandboxed { .. }) => self.event(),
            event => event,
        }
    }

    /// Waits for the first event that `wanted` picks.
    pub(crate) fn wait_for(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        std::iter::from_fn(|| self.event()).find(wanted).expect("the event comes before the end")
    }

    /// What is left of the console, now.
    pub(crate) fn console_log(&self) -> Vec<u8> {
        console_log::read(&content(&self.console_log)).unwrap()
    }

    /// The last event, as it is recorded.
    pub(crate) fn record(&self) -> Event {
        serde_json::from_slice(&content(&self.record)).unwrap()
    }

    /// All that it has logged so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&content(&self.log)).into_owned()
    }

    /// Ends the process as nothing else does.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.wait();
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let ended = self.has_ended();
        assert!(ended, "the machine process does not end: it is in {}", self.place());
        self.process.wait().unwrap()
    }

    fn has_ended(&mut self) -> bool {
        if self.process.try_wait().unwrap().is_some() {
            return true;
        }
        let process = rustix::process::Pid::from_child(&self.process);
        let process = rustix::process::pidfd_open(process, PidfdFlags::empty()).unwrap();
        let mut polled = [PollFd::new(&process, PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&PATIENCE.try_into().unwrap())).unwrap() == 1
    }

    /// Where in the host's kernel the process is.
    fn place(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/wchan", self.process.id())).unwrap_or_default()
    }

    /// A connection to one of the machine's sockets.
    pub(crate) fn connect(&self, socket: &Path) -> UnixStream {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Waits for the end: the status, and all that the console showed.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<u8>) {
        let mut output = Vec::new();
        self.console.read_to_end(&mut output).unwrap();
        (self.wait(), output)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // One that has ended cannot be killed, and need not be.
        let _ = self.process.kill();
        if self.has_ended() {
            let _ = self.process.wait();
        } else {
            eprintln!("process {} stays behind, in {}", self.process.id(), self.place());
        }
        if std::thread::panicking() {
            eprintln!("--- the machine's log ---\n{}---", String::from_utf8_lossy(&content(&self.log)));
        }
    }
}

fn content(file: &File) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sends a request with descriptors; gives the whole answer.
pub(crate) fn exchange(mut stream: UnixStream, request: &str, descriptors: &[BorrowedFd<'_>]) -> String {
    say(&stream, request, descriptors);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Sends a request with descriptors.
pub(crate) fn say(stream: &UnixStream, request: &str, descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    let bytes = [IoSlice::new(request.as_bytes())];
    rustix::net::sendmsg(stream, &bytes, &mut ancillary, SendFlags::empty()).unwrap();
}
