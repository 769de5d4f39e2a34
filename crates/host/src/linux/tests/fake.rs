//! A machine process that does what a test says. It is this test program itself, started again by a script
//! to run the one ignored test below. Its part is a word, in the variable [`PART`]:
//!
//! | part | what it does |
//! |---|---|
//! | `run` | says that it runs, then serves its control socket and its console |
//! | `late` | the same, once the file `go` is beside its program |
//! | `quick` | runs and powers off before anybody asks |
//! | `fail` | ends before it runs, and says why |
//! | `forbidden` | runs, and is then killed as by its sandbox |
//! | `rebel` | as `run`, until the file `go` is beside its program: then it is killed as by its sandbox |
//! | `die` | ends before it runs, without a word |

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::{
            fs::FileExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    process::exit,
    sync::{Arc, Mutex},
};

use ec2vmm_vmm_api::{
    Event, Exit, Failure, FailureKind, MachineConfig, Sandbox,
    config::RECORD_BYTES,
    console_log,
    control::{Booted, Machine, Metrics, PowerAction, PowerRequest, State},
};

use crate::{sandbox::DAEMON_IDS, testing::die_by_a_filter};

/// Holds the part.
pub(super) const PART: &str = "EC2VMM_FAKE_PART";
/// Holds the folder of the script.
pub(super) const FOLDER: &str = "EC2VMM_FAKE_FOLDER";

/// Makes the script.
pub(super) fn program(folder: &Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("fake-vmm");
    let test = std::env::current_exe().unwrap();
    let name = "linux::tests::fake::plays_its_part";
    let script = format!("#!/bin/sh\nexec '{}' --exact --ignored --nocapture {name}\n", test.display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

struct Fake {
    config: MachineConfig,
    record: File,
    lines: Mutex<Vec<String>>,
    listeners: Mutex<Vec<UnixStream>>,
}

#[test]
#[ignore = "not a test: the machine process of the others"]
fn plays_its_part() {
    let Ok(part) = std::env::var(PART) else { return };
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    if text.is_empty() {
        // Whoever started it was gone before it could say what to be.
        exit(2);
    }
    let config: MachineConfig = serde_json::from_str(&text).unwrap();
    assert_eq!(config.version, ec2vmm_vmm_api::VERSION);
    assert!(config.events.is_none() && config.lifeline.is_none() && config.console.is_none());
    check_descriptors(&config);
    let record = File::from(own(config.record.unwrap()));
    let control = UnixListener::from(own(config.control.unwrap()));
    let console = UnixListener::from(own(config.console_listener.unwrap()));
    show(&File::from(own(config.console_log.unwrap())), b"Linux says hello\r\n");
    let fake = Arc::new(Fake { config, record, lines: Mutex::default(), listeners: Mutex::default() });
    match part.as_str() {
        "fail" => {
            let failure = Failure { kind: FailureKind::NoKernel, message: "no kernel".into(), hint: None };
            fake.end(Exit::Failed(FailureKind::NoKernel), Some(failure));
        }
        "die" => {
            writeln!(std::io::stderr(), "ec2vmm-vmm: error: out of luck").unwrap();
            std::process::abort();
        }
        "late" => wait_to_go(),
        _ => {}
    }
    fake.tell(&Event::Loaded { us: 1000, booted: Booted::default() });
    fake.tell(&Event::Running { us: 1500 });
    if part == "quick" {
        fake.end(Exit::PowerOff, None);
    }
    if part == "forbidden" {
        // It is seen to run, and killed then.
        control.accept().unwrap();
        do_what_is_forbidden(&fake.config);
    }
    if part == "rebel" {
        let fake = Arc::clone(&fake);
        std::thread::spawn(move || {
            wait_to_go();
            do_what_is_forbidden(&fake.config)
        });
    }
    std::thread::spawn(move || {
        for stream in console.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read(&mut byte).is_ok_and(|count| count == 1) {
                    stream.write_all(&byte.map(|byte| byte.to_ascii_uppercase())).unwrap();
                }
            });
        }
    });
    for stream in control.incoming() {
        let (stream, fake) = (stream.unwrap(), Arc::clone(&fake));
        std::thread::spawn(move || fake.serve(stream));
    }
}

fn wait_to_go() {
    let go = Path::new(&std::env::var(FOLDER).unwrap()).join("go");
    while !go.exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// As the user that it is to be.
fn do_what_is_forbidden(config: &MachineConfig) -> ! {
    let Sandbox::Full { uid, .. } = config.sandbox else { panic!("{:?}", config.sandbox) };
    // SAFETY: numbers only. The C library would ask every other thread to do the same.
    assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }, 0);
    die_by_a_filter()
}

impl Fake {
    fn tell(&self, event: &Event) {
        let line = serde_json::to_string(event).unwrap();
        let len = usize::try_from(RECORD_BYTES).unwrap();
        self.record.write_all_at(format!("{line:len$}").as_bytes(), 0).unwrap();
        let mut listeners = self.listeners.lock().unwrap();
        self.lines.lock().unwrap().push(line.clone());
        listeners.retain_mut(|listener| writeln!(listener, "{line}").is_ok());
    }

    fn end(&self, exit: Exit, failure: Option<Failure>) -> ! {
        self.tell(&Event::Ended { us: 9_000_000, exit, failure });
        std::process::exit(exit.code().into());
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut request = BufReader::new(stream.try_clone().unwrap());
        let mut first = String::new();
        request.read_line(&mut first).unwrap();
        let (mut line, mut length) = (String::new(), 0);
        while request.read_line(&mut line).unwrap() > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        request.read_exact(&mut body).unwrap();
        match first.split(' ').nth(1).unwrap_or_default() {
            "/machine" => answer(&mut stream, &serde_json::to_string(&self.machine()).unwrap()),
            "/metrics" => {
                let mut metrics = Metrics::default();
                metrics.devices.insert("block0".into(), [("read_bytes".to_owned(), 5)].into());
                metrics.devices.insert("block1".into(), [("read_bytes".to_owned(), 7)].into());
                metrics.devices.insert("net0".into(), [("tx_bytes".to_owned(), 9)].into());
                answer(&mut stream, &serde_json::to_string(&metrics).unwrap());
            }
            "/events" => {
                let mut listeners = self.listeners.lock().unwrap();
                write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").unwrap();
                for line in &*self.lines.lock().unwrap() {
                    writeln!(stream, "{line}").unwrap();
                }
                listeners.push(stream);
            }
            "/machine/power" => {
                let request: PowerRequest = serde_json::from_slice(&body).unwrap();
                write!(stream, "HTTP/1.1 204 No Content\r\n\r\n").unwrap();
                drop(stream);
                match request.action {
                    PowerAction::Reboot => {
                        assert_eq!(request, PowerRequest::reboot(1500));
                        self.tell(&Event::Reset { us: 5_000_000 });
                        self.tell(&Event::Running { us: 5_000_500 });
                    }
                    PowerAction::PowerButton => self.end(Exit::PowerOff, None),
                    PowerAction::Reset | PowerAction::PowerOff => panic!("{request:?}"),
                }
            }
            other => panic!("{other}"),
        }
    }

    fn machine(&self) -> Machine {
        Machine {
            identity: self.config.identity.clone(),
            pid: std::process::id(),
            cpus: self.config.cpus,
            memory_mib: self.config.memory_mib,
            state: State::Running,
            reboots: 0,
            uptime_ms: 2000,
            booted: Booted::default(),
        }
    }
}

fn answer(stream: &mut UnixStream, body: &str) {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
}

/// Nothing was inherited but what the configuration names.
fn check_descriptors(config: &MachineConfig) {
    let Sandbox::Full { uid, gid, network: Some(network) } = config.sandbox else {
        panic!("{:?}", config.sandbox)
    };
    // It would enter the sandbox by itself; what it is born into is not its own doing.
    assert!(uid == gid && DAEMON_IDS.contains(&uid));
    assert_eq!(std::process::id(), 1, "it is the first of its namespace");
    let mut named = vec![0, 1, 2, config.kvm, network, config.record.unwrap(), config.control.unwrap()];
    named.extend(config.console_listener.iter().chain(&config.console_log));
    named.extend(config.disks.iter().flat_map(|disk| disk.layers.iter().map(|layer| layer.fd)));
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let number = entry.unwrap().file_name().to_string_lossy().parse::<RawFd>().unwrap();
        let path = std::fs::read_link(format!("/proc/self/fd/{number}"));
        // The folder that is being read; and what the test program opens for itself.
        let is_own = path.as_ref().is_ok_and(|path| path.starts_with("/proc") || path.ends_with("fd"));
        assert!(named.contains(&number) || path.is_err() || is_own, "{number} is {path:?}");
    }
    assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
    assert!(std::env::var("HOME").is_err(), "it has the environment that it was given");
}

fn show(file: &File, text: &[u8]) {
    file.set_len(console_log::FILE_BYTES).unwrap();
    file.write_all_at(&console_log::header(), 0).unwrap();
    file.write_all_at(text, console_log::place(0).0).unwrap();
    let slot = console_log::Slot::new(1, text.len() as u64);
    file.write_all_at(&slot.bytes, slot.offset).unwrap();
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the configuration names it, each descriptor once, and it was found open above.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
