//! Control groups (cgroup v2), one a machine: what it may take, what it has taken, and a way to end it
//! that nothing in it escapes.
//!
//! Invariant: a machine process is in its group before it is told what to be, so that whatever runs a
//! machine is found by its group. Source: Documentation/admin-guide/cgroup-v2.rst of Linux.

mod own;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use ec2vmm_model::{credits::Throttle, ids::InstanceId};
use rustix::process::{Pid, Signal};

pub use self::own::{Error as OwnError, OwnGroup};
use crate::{
    host::Error,
    linux::{changed, error::system},
};

/// The group of all machines.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    root: PathBuf,
    limited: bool,
}

/// The group of one machine.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    limited: bool,
}

/// What a machine may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) throttle: Throttle,
    pub(crate) vcpus: u8,
    /// None where it is not to be limited.
    pub(crate) memory_mib: Option<u64>,
}

/// What the processes of a group have taken.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Taken {
    pub(crate) cpu_us: u64,
    /// Nothing where the host does not count it.
    pub(crate) memory_bytes: u64,
}

impl Cgroups {
    /// Makes the group of all machines. With `limited`, processor time, memory and processes of each are
    /// limited; else they are counted, as far as the host does that without limits.
    pub(crate) fn start(root: &Path, limited: bool) -> Result<Self, Error> {
        let parent = match root.parent() {
            Some(parent) if parent == Path::new("") => Path::new("."),
            parent => parent.unwrap_or(root),
        };
        let controllers = match fs::read_to_string(parent.join("cgroup.controllers")) {
            Ok(controllers) => controllers,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(unusable(format!("{} is no cgroup v2", parent.display())));
            }
            Err(error) => return Err(system(format!("reading {}", parent.display()))(error)),
        };
        let has = |wanted: &&str| controllers.split_ascii_whitespace().any(|name| name == *wanted);
        if limited && let Some(missing) = CONTROLLERS.iter().find(|name| !has(name)) {
            let what = format!("the cgroup v2 at {} has no controller `{missing}`", parent.display());
            return Err(unusable(what));
        }
        make(root)?;
        if limited {
            let wanted = CONTROLLERS.iter().chain(OPTIONAL.iter().filter(|name| has(name)));
            for name in wanted {
                for group in [parent, root] {
                    write(&group.join("cgroup.subtree_control"), &format!("+{name}"))?;
                }
            }
        }
        Ok(Self { root: root.to_owned(), limited })
    }

    /// Their folder.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    /// The group of a machine, there or not.
    pub(crate) fn of(&self, instance: &InstanceId) -> Cgroup {
        self.named(instance.as_str())
    }

    fn named(&self, name: &str) -> Cgroup {
        Cgroup { path: self.root.join(name), limited: self.limited }
    }

    /// Whose groups there are.
    pub(crate) fn list(&self) -> Result<Vec<InstanceId>, Error> {
        let entries = fs::read_dir(&self.root).map_err(system("reading the control groups"))?;
        let id = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        Ok(entries.filter_map(id).collect())
    }
}

impl Cgroup {
    /// Makes the group, if it is not there, and sets its limits.
    pub(crate) fn create(&self, limits: &Limits) -> Result<(), Error> {
        make(&self.path)?;
        changed(format_args!("made {}", self.path.display()));
        if self.limited {
            if let Some(mib) = limits.memory_mib {
                let headroom = HEADROOM_BYTES + (mib << 20) / HEADROOM_SHARE;
                let memory = (mib << 20).saturating_add(headroom);
                self.write("memory.max", &memory.to_string())?;
                // What memory.max does not let it keep shall not go on in the host's swap without end.
                self.write_if_there("memory.swap.max", &memory.to_string())?;
            }
            self.write("memory.oom.group", "1")?;
            self.write("pids.max", &TASKS_MAX.to_string())?;
            // Where processors are promised several times, each vCPU has the same share.
            let weight = (u64::from(limits.vcpus) * WEIGHT_OF_VCPU).clamp(1, WEIGHT_MAX);
            self.write("cpu.weight", &weight.to_string())?;
            // The same of disks, where the host's scheduler of a disk goes by it; the device's own limits
            // are the machine's.
            self.write_if_there("io.weight", &weight.to_string())?;
            self.throttle(limits.throttle)?;
        }
        Ok(())
    }

    /// Limits processor time, or lifts the limit.
    pub(crate) fn throttle(&self, throttle: Throttle) -> Result<(), Error> {
        if !self.limited {
            return Ok(());
        }
        let quota = match throttle {
            Throttle::Full => "max".to_owned(),
            Throttle::Limited { millicpus } => {
                let quota = u64::from(millicpus) * PERIOD_US / 1000;
                quota.max(QUOTA_US_MIN).to_string()
            }
        };
        self.write("cpu.max", &format!("{quota} {PERIOD_US}"))
    }

    /// Puts a process into the group.
    pub(crate) fn add(&self, pid: u32) -> Result<(), Error> {
        self.write("cgroup.procs", &pid.to_string())?;
        changed(format_args!("put {pid} into {}", self.path.display()));
        Ok(())
    }

    /// The processes in the group; none where there is no group.
    pub(crate) fn processes(&self) -> Result<Vec<u32>, Error> {
        match fs::read_to_string(self.path.join("cgroup.procs")) {
            Ok(pids) => Ok(pids.lines().filter_map(|pid| pid.parse().ok()).collect()),
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            Err(error) => Err(system(format!("reading the control group {}", self.path.display()))(error)),
        }
    }

    /// Ends every process in the group.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                return Err(system(format!("ending the processes of {}", self.path.display()))(error));
            }
        }
        // A kernel before 5.14, or no group. A machine process starts no others.
        for pid in self.processes()? {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
                && let Err(error) = rustix::process::kill_process(pid, Signal::KILL)
                && error != rustix::io::Errno::SRCH
            {
                return Err(system("ending a machine process")(error.into()));
            }
        }
        Ok(())
    }

    /// Whether there is such a group.
    pub(crate) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Removes the group, if it is there. Nothing may be in it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        let mut tries = 0;
        loop {
            match fs::remove_dir(&self.path) {
                Ok(()) => {
                    changed(format_args!("removed {}", self.path.display()));
                    return Ok(());
                }
                Err(error) if is_gone(&error) => return Ok(()),
                // A process that has just ended leaves its group a moment later.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < REMOVE_TRIES => {
                    tries += 1;
                    std::thread::sleep(REMOVE_PAUSE);
                }
                Err(error) => {
                    return Err(system(format!("removing the control group {}", self.path.display()))(error));
                }
            }
        }
    }

    /// What its processes have taken.
    pub(crate) fn taken(&self) -> Result<Taken, Error> {
        let failed = || system(format!("reading what {} has taken", self.path.display()));
        let stat = fs::read_to_string(self.path.join("cpu.stat")).map_err(failed())?;
        let memory_bytes = match fs::read_to_string(self.path.join("memory.current")) {
            Ok(bytes) => bytes.trim().parse().unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.limited => 0,
            Err(error) => return Err(failed()(error)),
        };
        Ok(Taken { cpu_us: field(&stat, "usage_usec"), memory_bytes })
    }

    /// Where this kernel has such a file: swap and weights of disks can be left out of it.
    fn write_if_there(&self, name: &str, value: &str) -> Result<(), Error> {
        if self.path.join(name).exists() { self.write(name, value) } else { Ok(()) }
    }

    fn write(&self, name: &str, value: &str) -> Result<(), Error> {
        write(&self.path.join(name), value)
    }
}

/// Makes a group. False where there is one of this name. Whoever can read it can lock it, and so keep it from
/// its owner: nobody else shall.
fn make(path: &Path) -> Result<bool, Error> {
    match DirBuilder::new().mode(0o711).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(system(format!("making the control group {}", path.display()))(error)),
    }
}

/// One number of a file of lines such as `usage_usec 4711`.
fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_default()
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(system(format!("writing {value} to {}", path.display())))
}

/// What a removed group answers, depending on when it was opened.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn unusable(message: String) -> Error {
    Error::Other {
        message,
        hint: Some(
            "machines are limited by cgroup v2: boot the host with `systemd.unified_cgroup_hierarchy=1`, or \
             mount it (`mount -t cgroup2 none /sys/fs/cgroup`); or run without limits"
                .into(),
        ),
    }
}

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Used where the host has them.
const OPTIONAL: [&str; 1] = ["io"];
/// What a machine process takes beside its guest's memory: itself, page tables, requests under way, and
/// what the kernel keeps for it.
const HEADROOM_BYTES: u64 = 64 << 20;
/// Of the guest's memory, what tables that describe it take at most.
const HEADROOM_SHARE: u64 = 64;
/// vCPUs, the event loop, and workers of io_uring.
const TASKS_MAX: u32 = 512;
const REMOVE_TRIES: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);
const PERIOD_US: u64 = 100_000;
/// What a group has by itself.
const WEIGHT_OF_VCPU: u64 = 100;
const WEIGHT_MAX: u64 = 10_000;
/// The kernel's least.
const QUOTA_US_MIN: u64 = 1000;

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that leaves something out says so")]
pub(crate) mod tests {
    use std::{path::PathBuf, process::Command};

    use ec2vmm_model::{credits::Throttle, ids::InstanceId};

    use super::{Cgroups, Limits, field};

    /// A group of this test alone, where this host lets us have one: removed when dropped.
    pub(crate) struct Lab(pub(crate) PathBuf);

    impl Lab {
        pub(crate) fn new() -> Option<Self> {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            let mount = mounts.lines().find_map(|line| {
                let mut words = line.split(' ').skip(1);
                let path = words.next()?;
                (words.next()? == "cgroup2").then(|| PathBuf::from(path))
            });
            let name = format!("ec2vmm-test-{}", uuid::Uuid::new_v4());
            let path = mount.map(|mount| mount.join(name)).filter(|path| std::fs::create_dir(path).is_ok());
            if path.is_none() {
                eprintln!("SKIPPED: no cgroup v2 that this user may write to");
            }
            path.map(Self)
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            for group in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
                let _ = std::fs::write(group.path().join("cgroup.kill"), "1");
                // A killed process leaves its group a moment later.
                while std::fs::read_to_string(group.path().join("cgroup.procs"))
                    .is_ok_and(|pids| !pids.is_empty())
                {
                    std::thread::yield_now();
                }
                let _ = std::fs::remove_dir(group.path());
            }
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn whatever_is_in_a_group_is_found_and_ended() {
        let Some(lab) = Lab::new() else { return };
        let cgroups = Cgroups::start(&lab.0, false).unwrap();
        let instance = InstanceId::from_random(1);
        let cgroup = cgroups.of(&instance);
        assert_eq!(cgroup.processes().unwrap(), [0; 0]);
        let limits = Limits { throttle: Throttle::Full, vcpus: 1, memory_mib: Some(64) };
        cgroup.create(&limits).unwrap();
        cgroup.create(&limits).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        cgroup.add(child.id()).unwrap();
        assert_eq!(cgroup.processes().unwrap(), [child.id()]);
        assert_eq!(cgroups.list().unwrap(), [instance]);
        assert!(cgroup.remove().is_err());
        cgroup.taken().unwrap();
        cgroup.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(cgroup.processes().unwrap(), [0; 0]);
        for _ in 0..2 {
            cgroup.remove().unwrap();
            cgroup.kill().unwrap();
        }
        assert_eq!(cgroups.list().unwrap(), []);
    }

    #[test]
    fn what_a_machine_may_take() {
        let Some(lab) = Lab::new() else { return };
        let cgroups = match Cgroups::start(&lab.0, true) {
            Ok(cgroups) => cgroups,
            Err(error) => return eprintln!("SKIPPED: {error}"),
        };
        let cgroup = cgroups.of(&InstanceId::from_random(1));
        let throttle = Throttle::Limited { millicpus: 200 };
        cgroup.create(&Limits { throttle, vcpus: 2, memory_mib: Some(1024) }).unwrap();
        let read = |name: &str| std::fs::read_to_string(cgroup.path.join(name)).unwrap();
        assert_eq!(read("cpu.max"), "20000 100000\n");
        assert_eq!(read("cpu.weight"), "200\n");
        let memory = format!("{}\n", (1024 + 64 + 16) << 20);
        assert_eq!((read("memory.max"), read("pids.max")), (memory.clone(), "512\n".to_owned()));
        if cgroup.path.join("memory.swap.max").exists() {
            assert_eq!(read("memory.swap.max"), memory);
        }
        if cgroup.path.join("io.weight").exists() {
            assert_eq!(read("io.weight"), "default 200\n");
        }
        cgroup.throttle(Throttle::Full).unwrap();
        assert_eq!(read("cpu.max"), "max 100000\n");
    }

    /// On files that stand for a host with all controllers: what is written where.
    #[test]
    fn limits_as_they_are_written() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        let root = folder.path().join("ec2vmm");
        let cgroups = Cgroups::start(&root, true).unwrap();
        let written = std::fs::read_to_string(root.join("cgroup.subtree_control")).unwrap();
        assert_eq!(written, "+io", "each in a write of its own, the last one last");
        let cgroup = cgroups.of(&InstanceId::from_random(1));
        let read = |name: &str| std::fs::read_to_string(cgroup.path.join(name)).ok();
        cgroup.create(&Limits { throttle: Throttle::Full, vcpus: 3, memory_mib: None }).unwrap();
        assert_eq!((read("memory.max"), read("memory.oom.group")), (None, Some("1".into())));
        cgroup.create(&Limits { throttle: Throttle::Full, vcpus: 3, memory_mib: Some(64) }).unwrap();
        assert_eq!(read("memory.max"), Some(((64 + 64 + 1) << 20).to_string()));
        assert_eq!((read("cpu.weight"), read("cpu.max")), (Some("300".into()), Some("max 100000".into())));
        assert_eq!(read("pids.max"), Some("512".into()));
        assert_eq!(read("memory.swap.max"), None, "a kernel without it");
    }

    #[test]
    fn a_host_without_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let error = Cgroups::start(&folder.path().join("ec2vmm"), true).unwrap_err();
        assert!(error.to_string().contains("is no cgroup v2"), "{error}");
    }

    #[test]
    fn numbers_by_name() {
        assert_eq!(field("usage_usec 4711\nuser_usec 1\n", "usage_usec"), 4711);
        assert_eq!(field("user_usec 1\n", "usage_usec"), 0);
    }
}
