//! A walk through `/proc/PID` of a live machine.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ec2vmm_host::{
    cgroups::OwnGroup,
    sandbox::{Sandbox, SandboxKind, empty_network},
};

use crate::{
    born::{self, Kept},
    guests,
};

/// What `/proc` says of a process.
struct Seen(PathBuf);

impl Seen {
    fn new(pid: u32) -> Self {
        Self(format!("/proc/{pid}").into())
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    fn link(&self, name: &str) -> String {
        fs::read_link(self.0.join(name)).unwrap().to_string_lossy().into_owned()
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// A line of a status file.
    fn status(&self, task: &str, name: &str) -> String {
        let text = self.read(&format!("task/{task}/status"));
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name} in {text}")).trim().to_owned()
    }
}

/// All that does not depend on how it was started.
fn check_what_all_have(seen: &Seen, id: Option<u32>) {
    let mut tasks = Vec::new();
    // They run a moment after the event that says so.
    born::wait_until(|| {
        tasks = seen.names("task");
        // What the kernel does for KVM and io_uring it may show as threads of ours, which make no calls.
        tasks.retain(|task| !["kvm-", "iou-"].iter().any(|own| seen.status(task, "Name").starts_with(own)));
        tasks.len() == 3
            && tasks.iter().filter(|task| seen.status(task, "Seccomp_filters") == "2").count() == 2
    });
    for task in &tasks {
        let status = |name: &str| seen.status(task, name);
        if let Some(id) = id {
            let ids = format!("{id}\t{id}\t{id}\t{id}");
            assert_eq!((status("Uid"), status("Gid"), status("Groups")), (ids.clone(), ids, String::new()));
        }
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(set), "0000000000000000", "{set}");
        }
        assert_eq!(status("NoNewPrivs"), "1");
        assert_eq!(status("Seccomp"), "2", "filtered");
        let name = status("Name");
        let filters = if name.starts_with("vcpu") { "2" } else { "1" };
        assert_eq!(status("Seccomp_filters"), filters, "{name}");
        assert!(status("NSpid").ends_with(if name.starts_with("vcpu") { "" } else { "\t1" }), "the first");
    }
    check_root(seen);
    check_limits(seen);
    assert_eq!(seen.read("environ"), "");
}

fn check_root(seen: &Seen) {
    assert_eq!(seen.names("root"), [""; 0], "the root is empty");
    assert_eq!(seen.link("cwd"), "/");
    let mounts = seen.read("mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let fields: Vec<&str> = mounts.split(' ').collect();
    assert_eq!(fields[4], "/");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(fields[5].split(',').any(|given| given == option), "{option}: {mounts}");
    }
    assert!(mounts.contains(" - tmpfs "), "{mounts}");
    assert!(!mounts.contains("shared:") && !mounts.contains("master:"), "{mounts}");
}

fn check_limits(seen: &Seen) {
    let limits = seen.read("limits");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let mut words = line.split_whitespace();
        (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
    };
    let none = || ("0".to_owned(), "0".to_owned());
    for name in ["Max core file size", "Max msgqueue size", "Max nice priority", "Max realtime priority"] {
        assert_eq!(limit(name), none(), "{name}");
    }
    let (soft, hard) = limit("Max open files");
    assert!(soft == hard && soft.parse::<u64>().unwrap() <= 16 * 1024, "{soft} {hard}");
}

fn check_namespaces(seen: &Seen, own_users: bool) {
    let ours = Seen("/proc/self".into());
    for name in ["mnt", "pid", "ipc", "uts", "cgroup", "net"] {
        let name = format!("ns/{name}");
        assert_ne!(seen.link(&name), ours.link(&name));
    }
    assert_eq!(seen.link("ns/user") != ours.link("ns/user"), own_users);
    // Of the network there is nothing but a loopback that is down.
    let links = seen.read("net/dev");
    assert_eq!(links.lines().skip(2).count(), 1, "{links}");
    assert!(links.lines().nth(2).unwrap().trim_start().starts_with("lo:"), "{links}");
}

/// What is open, and how often. What has no name on the host counts by its kind.
fn open(seen: &Seen) -> BTreeMap<String, usize> {
    let mut open = BTreeMap::new();
    for number in seen.names("fd") {
        let name = seen.link(&format!("fd/{number}"));
        let kind = if name.starts_with('/') { name } else { name.split(':').next().unwrap().to_owned() };
        let kind = kind.replace(" (deleted)", "");
        let kind = if kind.starts_with("/tmp/") || kind.starts_with("/var/tmp/") {
            format!("file {}", Path::new(&kind).file_name().unwrap().to_string_lossy())
        } else {
            kind
        };
        *open.entry(kind).or_default() += 1;
    }
    open
}

#[test]
fn a_machine_of_the_daemon_holds_nothing_but_descriptors() {
    if !born::is_possible() {
        return;
    }
    let network = empty_network().unwrap();
    let start = || Kept::start(born::parts(born::full(&network), guests::idle(), None));
    let (machine, other) = (start(), start());
    let seen = Seen::new(machine.pid);
    check_what_all_have(&seen, Some(born::ID));
    check_namespaces(&seen, false);
    // All of one daemon are in the same empty network, and in nothing else together.
    let other = Seen::new(other.pid);
    assert_eq!(seen.link("ns/net"), other.link("ns/net"));
    for name in ["mnt", "pid", "ipc", "uts", "cgroup"] {
        assert_ne!(seen.link(&format!("ns/{name}")), other.link(&format!("ns/{name}")));
    }
    assert_eq!(fs::metadata(seen.0.join("mem")).unwrap().uid(), 0, "nobody but root may look in");
    let tasks = seen.read("limits");
    let tasks = tasks.lines().find(|line| line.starts_with("Max processes")).unwrap();
    assert_eq!(tasks.split_whitespace().nth(2), Some("512"));
    let mut open = open(&seen);
    // The kernel that was given has no name. All else was named above, or is of no use to anybody else.
    open.retain(|name, _| !name.starts_with("file #") && !name.starts_with("file .tmp"));
    let expected = [
        ("/dev/kvm", 1),
        // Standard input and output.
        ("/dev/null", 2),
        ("file console-log", 1),
        ("file log", 1),
        ("file record", 1),
        // Listening for control and console.
        ("socket", 2),
    ];
    for (name, count) in expected {
        assert_eq!(open.remove(name), Some(count), "{name}");
    }
    let kinds: Vec<String> = open.into_keys().collect();
    assert_eq!(kinds, ["anon_inode"], "eventfds, epolls, timers, the VM and its vCPUs");
}

#[test]
fn a_machine_of_a_command_run_by_root_holds_nothing_but_descriptors() {
    if !born::is_possible() {
        return;
    }
    let machine =
        born::run(born::parts(Sandbox::of(SandboxKind::Full, born::ID, None), guests::idle(), None), None);
    let seen = Seen::new(machine.pid());
    check_what_all_have(&seen, Some(born::ID));
    check_namespaces(&seen, false);
    let open = open(&seen);
    let by_name = |name: &str| open.get(name).copied();
    assert_eq!((by_name("/dev/kvm"), by_name("/dev/null")), (Some(1), Some(2)));
    // The console is a socket; events, lifeline and log are pipes.
    assert_eq!((by_name("socket"), by_name("pipe")), (Some(1), Some(3)));
}

#[test]
fn a_machine_in_a_user_namespace_has_only_its_users_ids() {
    if !born::is_possible() {
        return;
    }
    let machine = born::run(born::parts(Sandbox::User, guests::idle(), None), None);
    let seen = Seen::new(machine.pid());
    check_what_all_have(&seen, None);
    check_namespaces(&seen, true);
    let own = rustix::process::geteuid().as_raw();
    let map = seen.read("uid_map");
    let map: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(map, ["0", &own.to_string(), "1"]);
    assert_eq!(seen.read("setgroups"), "deny\n");
}

#[test]
fn a_machine_whose_memory_is_brought_in_holds_no_way_to_make_a_userfaultfd() {
    if !born::is_possible() || !born::has_userfaultfd() {
        return;
    }
    let network = empty_network().unwrap();
    let [state, memory] = born::snapshot(&network);
    // In every sandbox the kernel's own accesses are served too: the machine runs.
    for sandbox in [born::full(&network), Sandbox::User, Sandbox::Filters] {
        let mut parts = born::parts(sandbox, guests::idle(), None);
        parts.restore = Some(born::paged(&state, &memory, None, None));
        let machine = born::run(parts, None);
        let seen = Seen::new(machine.pid());
        assert_eq!(open(&seen).get("/dev/userfaultfd"), None);
        let tasks = seen.names("task");
        let pager = tasks.iter().find(|task| seen.status(task, "Name") == "pager").unwrap();
        born::wait_until(|| seen.status(pager, "Seccomp_filters") == "2");
    }
}

#[test]
fn weaker_sandboxes_are_filtered_all_the_same() {
    if !born::is_possible() {
        return;
    }
    for kind in [SandboxKind::Landlock, SandboxKind::Filters] {
        let sandbox = match Sandbox::for_this_process(Some(kind)) {
            Ok(sandbox) => sandbox,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                continue;
            }
        };
        let machine = born::run(born::parts(sandbox, guests::idle(), None), None);
        let seen = Seen::new(machine.pid());
        for task in seen.names("task") {
            assert_eq!(
                (seen.status(&task, "NoNewPrivs"), seen.status(&task, "Seccomp")),
                ("1".into(), "2".into())
            );
            assert_eq!(
                (seen.status(&task, "CapPrm"), seen.status(&task, "CapBnd")),
                (NONE.into(), NONE.into())
            );
        }
        check_limits(&seen);
    }
}

#[test]
fn a_process_that_was_not_born_as_it_was_asked_to_be_ends() {
    if !born::is_possible() {
        return;
    }
    let mut config = crate::machine::config();
    config.sandbox = ec2vmm_vmm_api::Sandbox::Full { uid: born::ID, gid: born::ID, network: None };
    let mut machine = crate::machine::Machine::start_with(&config, &crate::machine::elf(guests::power_off()));
    let Some(ec2vmm_vmm_api::Event::Ended { failure: Some(failure), .. }) = machine.event() else { panic!() };
    assert_eq!(failure.kind, ec2vmm_vmm_api::FailureKind::Sandbox);
    assert!(failure.message.contains("not born into a pid namespace"), "{failure:?}");
}

#[test]
fn its_control_group_is_all_that_it_sees_of_them() {
    if !born::is_possible() {
        return;
    }
    let group = groups().map(|top| top.join(format!("ec2vmm-sandbox-{}", std::process::id())));
    let Some(group) = group.filter(|group| fs::create_dir(group).is_ok()) else {
        return eprintln!("SKIPPED: no cgroup v2 that this user may write to");
    };
    let network = empty_network().unwrap();
    let (newborn, machine) = Kept::newborn(born::parts(born::full(&network), guests::idle(), None));
    fs::write(group.join("cgroup.procs"), machine.pid.to_string()).unwrap();
    newborn.tell().unwrap();
    machine.wait_until_running();
    let seen = Seen::new(machine.pid);
    let path = seen.read("cgroup");
    let path = path.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    assert!(path.ends_with(group.file_name().unwrap().to_str().unwrap()), "{path}");
    // Entering the namespace of groups makes the group its root.
    assert_ne!(seen.link("ns/cgroup"), Seen("/proc/self".into()).link("ns/cgroup"));
    drop(machine);
    born::wait_until(|| fs::remove_dir(&group).is_ok());
}

/// The top of control groups, where this host has it.
fn groups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    mount.map(|line| line.split(' ').nth(1).unwrap().into())
}

#[test]
fn a_machine_of_a_command_is_limited_by_a_group_of_its_own() {
    if !born::is_possible() {
        return;
    }
    let parent = groups().map(|top| top.join(format!("ec2vmm-sandbox-run-{}", std::process::id())));
    let made = parent.as_ref().map(|parent| OwnGroup::make(parent, 2, Some(64)));
    let (Some(parent), Some(Ok(group))) = (parent, made) else {
        return eprintln!("SKIPPED: no cgroup v2 with the controllers cpu, memory and pids");
    };
    for sandbox in [Sandbox::of(SandboxKind::Full, born::ID, None), Sandbox::User] {
        let group = OwnGroup::make(&parent, 2, Some(64)).unwrap();
        let machine = born::run(born::parts(sandbox, guests::idle(), None), Some(group));
        let path = Seen::new(machine.pid()).read("cgroup");
        let path = path.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
        let own = parent.join(Path::new(path).file_name().unwrap());
        let read = |name: &str| fs::read_to_string(own.join(name)).unwrap();
        // Threads of KVM that work for the VM are in the group too.
        assert!(read("cgroup.procs").lines().any(|pid| pid == machine.pid().to_string()));
        assert_eq!(read("memory.max"), format!("{}\n", (64 + 64 + 1) << 20));
        assert_eq!((read("pids.max"), read("cpu.weight")), ("512\n".into(), "200\n".into()));
        assert!(machine.out_of_memory().is_none());
        drop(machine);
        assert!(!own.exists());
    }
    drop(group);
    fs::remove_dir(&parent).unwrap();
}

const NONE: &str = "0000000000000000";
