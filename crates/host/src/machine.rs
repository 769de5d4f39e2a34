//! A machine process: `ec2vmm-vmm`, started with everything it may use as open descriptors.
//!
//! Invariants: the process inherits what its configuration names and nothing else. A [`Machine`] ends when
//! it is dropped, and also when this process is killed, because its lifeline then closes. A [`Newborn`]
//! does nothing before it is told what to be, and outlives this process from then on.

use std::{
    fs::File,
    io::{self, Seek, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::ExitStatus,
};

use ec2vmm_vmm_api::{
    Failure, FailureKind, MachineConfig,
    config::{self, Fd, Identity},
};
use rustix::{
    fs::MemfdFlags,
    net::{AddressFamily, SocketFlags, SocketType},
    pipe::PipeFlags,
};

use crate::{
    Explained,
    cgroups::OwnGroup,
    disks::Disk,
    sandbox::Sandbox,
    spawn::{self, Birth, Child, Namespaces},
};

/// What a machine is made of, all of it open.
#[derive(Debug)]
pub struct Parts {
    /// `/dev/kvm`.
    pub kvm: File,
    /// How the process is shut in.
    pub sandbox: Sandbox,
    /// What it says of itself.
    pub identity: Identity,
    /// vCPUs.
    pub cpus: u8,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// See [`MachineConfig::huge_pages`].
    pub huge_pages: bool,
    /// Where kernel, initrd and command line come from.
    pub boot: Boot,
    /// A snapshot to go on from.
    pub restore: Option<Restore>,
    /// Disks in the order in which the guest finds them.
    pub disks: Vec<Disk>,
    /// Network interfaces in the order in which the guest finds them.
    pub nets: Vec<Net>,
    /// How the guest gives memory back.
    pub balloon: config::Balloon,
    /// The guest's source of random numbers.
    pub entropy: config::Entropy,
    /// The listening socket that guest and host sockets meet at.
    pub vsock: Option<OwnedFd>,
    /// The listening socket for control.
    pub control: Option<OwnedFd>,
}

/// By which ways a machine and its owner hear of each other, but for the control socket.
#[derive(Debug, Default)]
pub struct Ways {
    /// See [`MachineConfig::console`].
    pub console: Option<OwnedFd>,
    /// See [`MachineConfig::console_log`].
    pub console_log: Option<OwnedFd>,
    /// See [`MachineConfig::console_listener`].
    pub console_listener: Option<OwnedFd>,
    /// See [`MachineConfig::record`].
    pub record: Option<OwnedFd>,
    /// See [`MachineConfig::events`].
    pub events: Option<OwnedFd>,
    /// See [`MachineConfig::lifeline`].
    pub lifeline: Option<OwnedFd>,
}

/// [`config::Boot`] with open files.
#[derive(Debug)]
pub enum Boot {
    /// From the first disk.
    Disk {
        /// Words added at the end of the command line.
        append: Option<String>,
    },
    /// From files.
    Files {
        /// bzImage or ELF.
        kernel: File,
        /// Initial RAM disk.
        initrd: Option<File>,
        /// The whole command line.
        cmdline: String,
    },
}

/// [`config::Restore`] with open files.
#[derive(Debug)]
pub struct Restore {
    /// The state file.
    pub state: File,
    /// The memory files: a full one, then each difference.
    pub memory: Vec<File>,
    /// How guest memory comes out of them.
    pub backend: MemoryBackend,
}

/// [`config::MemoryBackend`] with open files.
#[derive(Debug, Default)]
pub enum MemoryBackend {
    /// The full file is mapped, differences are copied.
    #[default]
    Mapped,
    /// Each page is read when it is touched.
    Userfaultfd {
        /// See [`crate::userfaultfd::open`].
        device: Option<File>,
        /// A working set whose pages are brought in ahead.
        prefetch: Option<File>,
        /// A file to write the working set into.
        record: Option<File>,
    },
}

/// [`config::Net`] with an open tap.
#[derive(Debug)]
pub struct Net {
    /// Each queue of the tap. See [`crate::tap`].
    pub taps: Vec<File>,
    /// Hardware address.
    pub mac: [u8; 6],
    /// See [`config::Net::mtu`].
    pub mtu: Option<u16>,
    /// See [`config::Net::receive_limit`].
    pub receive_limit: config::RateLimit,
    /// See [`config::Net::transmit_limit`].
    pub transmit_limit: config::RateLimit,
}

/// Why a machine process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is nowhere.
    #[error("cannot find the program {PROGRAM}")]
    NoProgram,
    /// The program does not start.
    #[error("cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host's system failed.
    #[error("cannot prepare the machine process")]
    Prepare(#[from] io::Error),
}

impl Explained for Error {
    fn kind(&self) -> FailureKind {
        FailureKind::Other
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoProgram => {
                Some(format!("put {PROGRAM} beside ec2vmm or in PATH, or name it in the variable EC2VMM_VMM"))
            }
            Self::Start { .. } | Self::Prepare(_) => None,
        }
    }
}

/// Finds the program: beside the one that runs, else in `path`, a list as in the variable `PATH`.
///
/// # Errors
/// [`Error::NoProgram`].
pub fn find_program(path: Option<&std::ffi::OsStr>) -> Result<PathBuf, Error> {
    let beside = std::env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
    let listed = path.into_iter().flat_map(std::env::split_paths);
    beside
        .into_iter()
        .chain(listed)
        .map(|folder| folder.join(PROGRAM))
        .find(|program| program.is_file())
        .ok_or(Error::NoProgram)
}

/// A running machine process.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    lifeline: Option<OwnedFd>,
    /// Goes after the process.
    group: Option<OwnGroup>,
    /// What the guest prints can be read, what is written the guest reads. Never waits.
    pub console: OwnedFd,
    /// [`ec2vmm_vmm_api::Event`]s, one a line. Never waits.
    pub events: OwnedFd,
    /// The process's own log. Never waits.
    pub log: OwnedFd,
}

impl Machine {
    /// Starts `program` in a process group of its own, so that the terminal's Ctrl-C is not for it, with
    /// these `variables` and no other, in the control group `group` if there is one, else in ours.
    ///
    /// # Errors
    /// [`Error::Start`], [`Error::Prepare`].
    pub fn start(
        program: &Path,
        variables: &[(String, String)],
        parts: Parts,
        group: Option<OwnGroup>,
    ) -> Result<Self, Error> {
        let (console, console_end) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(io::Error::from)?;
        let (events, events_end) = pipe()?;
        let (log, log_end) = pipe()?;
        let (lifeline_end, lifeline) = pipe()?;
        for ours in [&console, &events, &log] {
            rustix::io::ioctl_fionbio(ours, true).map_err(io::Error::from)?;
        }
        let ways = Ways {
            console: Some(console_end),
            events: Some(events_end),
            lifeline: Some(lifeline_end),
            ..Ways::default()
        };
        // What is handed over, and with it our copies, goes at the end of this function.
        let prepared = Prepared::new(parts, ways);
        let document = document(&prepared.config)?;
        let streams = (document.as_fd(), log_end.as_fd());
        let entrance = group.as_ref().map(OwnGroup::entrance);
        let child = prepared.start(program, variables, streams, entrance)?;
        Ok(Self { child, lifeline: Some(lifeline), group, console, events, log })
    }

    /// The process's number on this host.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Readable when the process has ended.
    pub fn as_ended(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }

    /// What people are told, if it is its control group that has ended the process.
    pub fn out_of_memory(&self) -> Option<Failure> {
        self.group.as_ref().filter(|group| group.is_out_of_memory()).map(|_| Failure {
            kind: FailureKind::Memory,
            message: "the machine process was killed: it took more memory than its control group lets it"
                .into(),
            hint: Some(
                "files in memory (tmpfs) that it writes count, such as snapshots and disks: put them elsewhere \
                 (TMPDIR), or run without limits (`--cgroup none`)"
                    .into(),
            ),
        })
    }

    /// Lets go of the lifeline: the process writes back what is to be written back, and ends.
    pub fn release(&mut self) {
        self.lifeline = None;
    }

    /// Ends the process at once.
    ///
    /// # Errors
    /// None that can be expected: the process is our own.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }

    /// How the process ended, if it has.
    ///
    /// # Errors
    /// None that can be expected: the process is our own.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            // Both fail only for a process that is gone already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A machine process that waits to be told what to be. Nobody reads its configuration to the end before
/// all of it was written: a process whose owner is killed before that ends by itself.
#[derive(Debug)]
pub struct Newborn {
    child: Child,
    stdin: OwnedFd,
    config: Vec<u8>,
}

impl Newborn {
    /// Starts `program` with these `variables` and no other, its messages going to `log`.
    ///
    /// # Errors
    /// [`Error::Start`], [`Error::Prepare`].
    pub fn start(
        program: &Path,
        variables: &[(String, String)],
        parts: Parts,
        ways: Ways,
        log: &File,
    ) -> Result<Self, Error> {
        let prepared = Prepared::new(parts, ways);
        let (stdin_end, stdin) = pipe()?;
        let child = prepared.start(program, variables, (stdin_end.as_fd(), log.as_fd()), None)?;
        let config = serde_json::to_vec(&prepared.config).map_err(io::Error::from)?;
        Ok(Self { child, stdin, config })
    }

    /// The process's id: it is ours, so it stays the process's until we have waited for it.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Follows the process's life.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        self.child.pidfd().try_clone_to_owned()
    }

    /// Tells it what to be. It goes its own way from here.
    ///
    /// # Errors
    /// It has ended before.
    pub fn tell(self) -> io::Result<()> {
        File::from(self.stdin).write_all(&self.config)
    }

    /// Ends it, untold.
    pub fn end(self) {
        end(self.child);
    }
}

/// How a process ended, in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => format!("ended: {status}"),
    }
}

/// The one place where a machine process is prepared: it inherits what the configuration names, standard
/// streams, and nothing else.
struct Prepared {
    config: MachineConfig,
    handed: Vec<OwnedFd>,
    namespaces: Namespaces,
}

impl Prepared {
    fn new(parts: Parts, ways: Ways) -> Self {
        let mut handed = Handed(Vec::new());
        let namespaces = parts.sandbox.namespaces();
        Self { config: handed.configure(parts, ways), handed: handed.0, namespaces }
    }

    fn start(
        &self,
        program: &Path,
        variables: &[(String, String)],
        (stdin, stderr): (BorrowedFd<'_>, BorrowedFd<'_>),
        group: Option<BorrowedFd<'_>>,
    ) -> Result<Child, Error> {
        let (handed, namespaces) = (self.handed.as_slice(), self.namespaces);
        spawn::spawn(&Birth { program, variables, stdin, stderr, handed, namespaces, group })
            .map_err(|source| Error::Start { program: program.to_owned(), source })
    }
}

/// The descriptors that the process inherits, under the numbers that they have here.
struct Handed(Vec<OwnedFd>);

impl Handed {
    fn hand(&mut self, descriptor: impl Into<OwnedFd>) -> Fd {
        let descriptor = descriptor.into();
        let number = descriptor.as_raw_fd();
        self.0.push(descriptor);
        number
    }

    fn configure(&mut self, parts: Parts, ways: Ways) -> MachineConfig {
        let mut given = |descriptor: Option<OwnedFd>| descriptor.map(|descriptor| self.hand(descriptor));
        let [console, console_log, console_listener] =
            [ways.console, ways.console_log, ways.console_listener].map(&mut given);
        let [record, events, lifeline] = [ways.record, ways.events, ways.lifeline].map(given);
        let Parts {
            kvm,
            sandbox,
            identity,
            cpus,
            memory_mib,
            huge_pages,
            boot,
            restore,
            disks,
            nets,
            balloon,
            entropy,
            vsock,
            control,
        } = parts;
        MachineConfig {
            version: ec2vmm_vmm_api::VERSION,
            kvm: self.hand(kvm),
            sandbox: match sandbox {
                Sandbox::Full { id, network } => ec2vmm_vmm_api::Sandbox::Full {
                    uid: id,
                    gid: id,
                    network: network.map(|network| self.hand(network)),
                },
                Sandbox::User => ec2vmm_vmm_api::Sandbox::User,
                Sandbox::Landlock => ec2vmm_vmm_api::Sandbox::Landlock,
                Sandbox::Filters => ec2vmm_vmm_api::Sandbox::Filters,
                Sandbox::Off => ec2vmm_vmm_api::Sandbox::Off,
            },
            identity,
            cpus,
            memory_mib,
            huge_pages,
            boot: match boot {
                Boot::Disk { append } => config::Boot::Disk { append },
                Boot::Files { kernel, initrd, cmdline } => config::Boot::Files {
                    kernel: self.hand(kernel),
                    initrd: initrd.map(|initrd| self.hand(initrd)),
                    cmdline,
                },
            },
            restore: restore.map(|Restore { state, memory, backend }| config::Restore {
                state: self.hand(state),
                memory: memory.into_iter().map(|file| self.hand(file)).collect(),
                backend: self.backend(backend),
                clock: config::Clock::default(),
                track: false,
            }),
            disks: disks.into_iter().map(|disk| self.disk(disk)).collect(),
            nets: nets.into_iter().map(|net| self.net(net)).collect(),
            balloon,
            entropy,
            vsock: vsock.map(|listener| config::Vsock { cid: GUEST_CID, listener: self.hand(listener) }),
            console,
            console_log,
            console_listener,
            record,
            control: control.map(|listener| self.hand(listener)),
            events,
            lifeline,
            stuck_after_s: config::STUCK_AFTER_S_USUAL,
        }
    }

    fn backend(&mut self, backend: MemoryBackend) -> config::MemoryBackend {
        let MemoryBackend::Userfaultfd { device, prefetch, record } = backend else {
            return config::MemoryBackend::Mapped;
        };
        let [device, prefetch, record] =
            [device, prefetch, record].map(|file| file.map(|file| self.hand(file)));
        config::MemoryBackend::Userfaultfd { device, prefetch, record }
    }

    fn disk(&mut self, disk: Disk) -> config::Disk {
        let Disk { layers, read_only, scratch, serial, queues, rate_limit } = disk;
        let layers = layers
            .into_iter()
            .map(|layer| config::Layer { fd: self.hand(layer.file), format: layer.format })
            .collect();
        config::Disk { layers, read_only, scratch, serial, queues, rate_limit }
    }

    fn net(&mut self, net: Net) -> config::Net {
        let Net { taps, mac, mtu, receive_limit, transmit_limit } = net;
        let taps = taps.into_iter().map(|tap| self.hand(tap)).collect();
        config::Net { taps, mac, mtu, receive_limit, transmit_limit }
    }
}

/// The configuration as a file to read: a pipe could fill up or break.
fn document(config: &MachineConfig) -> io::Result<File> {
    let mut file: File = rustix::fs::memfd_create("ec2vmm-config", MemfdFlags::CLOEXEC)?.into();
    file.write_all(&serde_json::to_vec(config)?)?;
    file.rewind()?;
    Ok(file)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}

fn end(mut child: Child) {
    // Both fail only for a process that is gone already.
    let _ = child.kill();
    let _ = child.wait();
}

/// The program of a machine process.
pub const PROGRAM: &str = "ec2vmm-vmm";
/// Context ids need only differ where machines share a device; here each has a socket of its own.
const GUEST_CID: u32 = 3;
