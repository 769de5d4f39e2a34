//! The group of a machine that lives no longer than the process that owns it: that of `ec2vmm run`.
//!
//! A group outlives whoever made it. So its owner holds it for as long as it lives, and whoever makes the next
//! one beside it takes away those that nobody holds: what is left of owners that were killed. Their machines
//! end by themselves, as their lifelines are gone.
//!
//! Invariant: only groups of this kind are taken away, when nobody holds them and nothing is in them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Component, Path, PathBuf},
};

use ec2vmm_model::credits::Throttle;
use ec2vmm_vmm_api::FailureKind;
use rustix::fs::Access;

use super::{Cgroup, Cgroups, Limits, field, make};
use crate::{Explained, held::Held, host, linux::error::system};

/// A group for one machine. It goes when this is dropped, after the machine's process.
#[derive(Debug)]
pub struct OwnGroup {
    cgroup: Cgroup,
    /// What a process writes to, to be in it.
    entrance: File,
    _held: Held,
}

/// There is no group.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be there.
    #[error("no control group can be made in {}", parent.display())]
    Unusable {
        /// Where it should be.
        parent: PathBuf,
        /// Why not.
        source: host::Error,
    },
    /// Nothing is delegated to this user.
    #[error("this user has no control group to make others in")]
    NothingDelegated,
}

impl Explained for Error {
    fn kind(&self) -> FailureKind {
        FailureKind::Sandbox
    }

    fn hint(&self) -> Option<String> {
        Some(
            "name a group whose parent has the controllers cpu, memory and pids and which this user may make; \
             or run without limits (`--cgroup none`)"
                .into(),
        )
    }
}

impl OwnGroup {
    /// A group in `parent`, which is made if it is not there, for a machine of this size. Its memory is not
    /// limited where `memory_mib` is none.
    ///
    /// # Errors
    /// [`Error::Unusable`]; there is then no new group.
    pub fn make(parent: &Path, vcpus: u8, memory_mib: Option<u64>) -> Result<Self, Error> {
        let limits = Limits { throttle: Throttle::Full, vcpus, memory_mib };
        Self::with(parent, true, &limits)
            .map_err(|source| Error::Unusable { parent: parent.to_owned(), source })
    }

    /// The same where this user's groups usually are: root's below the top of all, another's beside the one that
    /// this process is in.
    ///
    /// # Errors
    /// [`Error::Unusable`], [`Error::NothingDelegated`].
    pub fn make_as_usual(vcpus: u8, memory_mib: Option<u64>) -> Result<Self, Error> {
        let is_root = rustix::process::geteuid().is_root();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let parent = usual_parent(Path::new(TOP), is_root, &own).ok_or(Error::NothingDelegated)?;
        let made = Self::make(&parent, vcpus, memory_mib);
        if made.is_err() {
            // It was made for this alone, and stays where others use it.
            let _ = fs::remove_dir(&parent);
        }
        made
    }

    /// Whether the kernel has ended a process in it for taking more memory than the group may have.
    pub fn is_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.cgroup.path.join("memory.events"));
        // Where memory is not limited there is no such file.
        events.is_ok_and(|events| tells_of_too_much(&events))
    }

    /// What a process writes `0` to, to be in it.
    pub(crate) fn entrance(&self) -> BorrowedFd<'_> {
        self.entrance.as_fd()
    }

    fn with(parent: &Path, limited: bool, limits: &Limits) -> Result<Self, host::Error> {
        let cgroups = Cgroups::start(parent, limited)?;
        sweep(parent)?;
        for number in 0..TRIES {
            let cgroup = cgroups.named(&format!("{PREFIX}{}-{number}", std::process::id()));
            let Some(held) = create(&cgroup.path)? else { continue };
            let made = cgroup.create(limits).and_then(|()| {
                let entrance = cgroup.path.join("cgroup.procs");
                OpenOptions::new()
                    .write(true)
                    .open(&entrance)
                    .map_err(system(format!("opening {}", entrance.display())))
            });
            return match made {
                Ok(entrance) => Ok(Self { cgroup, entrance, _held: held }),
                Err(error) => {
                    // What went wrong first is told.
                    let _ = fs::remove_dir(&cgroup.path);
                    Err(error)
                }
            };
        }
        Err(host::Error::Other { message: format!("{} is full", parent.display()), hint: None })
    }
}

impl Drop for OwnGroup {
    fn drop(&mut self) {
        if let Err(error) = self.cgroup.remove() {
            // The next owner of a machine tries again.
            tracing::debug!("{error}");
        }
    }
}

/// What `memory.events` says: the group was at its limit, and a process was killed. Where only the host was out of
/// memory, only the latter.
fn tells_of_too_much(events: &str) -> bool {
    field(events, "oom ") > 0 && field(events, "oom_kill ") > 0
}

/// Makes a group and holds it. None where there is one of this name, or it was swept before it was held.
fn create(path: &Path) -> Result<Option<Held>, host::Error> {
    if !make(path)? {
        return Ok(None);
    }
    match Held::at_once(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map_err(system(format!("locking the control group {}", path.display()))),
    }
}

/// Removes the groups that nobody holds. What cannot be removed has a process that has not ended yet, or is
/// another user's: the next one tries again.
fn sweep(parent: &Path) -> Result<(), host::Error> {
    let failed = || system(format!("reading the control group {}", parent.display()));
    for entry in fs::read_dir(parent).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        let is_ours =
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX));
        if is_ours && let Ok(Some(_held)) = Held::at_once(&path) {
            let _ = fs::remove_dir(&path);
        }
    }
    Ok(())
}

/// Where the groups of this user's machines are, whose own one is named in `own` (`/proc/self/cgroup`): for
/// root in `top`; else in the nearest group above their own in which they may make others.
fn usual_parent(top: &Path, is_root: bool, own: &str) -> Option<PathBuf> {
    if is_root {
        return Some(top.join(NAME));
    }
    let own = Path::new(own.lines().find_map(|line| line.strip_prefix("0::/"))?);
    // Else it is outside of what this process sees of them.
    let is_below = own.components().all(|part| matches!(part, Component::Normal(_)));
    let own = is_below.then(|| top.join(own))?;
    let may_write = |path: PathBuf| rustix::fs::access(path, Access::WRITE_OK).is_ok();
    // Not in the own one: a group with processes has no others that are limited.
    let mut above = own.ancestors().skip(1).take_while(|group| group.starts_with(top));
    let is_delegated = |group: &&Path| {
        ["", "cgroup.procs", "cgroup.subtree_control"].iter().all(|file| may_write(group.join(file)))
    };
    above.find(is_delegated).map(|group| group.join(NAME))
}

const TOP: &str = "/sys/fs/cgroup";
const NAME: &str = "ec2vmm-run";
/// What names of such groups begin with.
const PREFIX: &str = "run-";
/// A process owns few machines, and of processes with one number, each in a namespace of its own, there are few.
const TRIES: u32 = 1000;

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that leaves something out says so")]
mod tests {
    use std::{fs, path::Path};

    use ec2vmm_model::credits::Throttle;

    use super::{Error, OwnGroup, tells_of_too_much, usual_parent};
    use crate::{
        Explained,
        cgroups::{Limits, tests::Lab},
        spawn::{self, Birth, Namespaces},
    };

    fn make(parent: &Path) -> OwnGroup {
        let limits = Limits { throttle: Throttle::Full, vcpus: 1, memory_mib: Some(64) };
        OwnGroup::with(parent, false, &limits).unwrap()
    }

    fn groups(parent: &Path) -> Vec<String> {
        let names = fs::read_dir(parent).unwrap().map(|entry| entry.unwrap());
        let folders = names.filter(|entry| entry.file_type().unwrap().is_dir());
        let mut names: Vec<_> =
            folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_process_is_born_into_it_and_it_goes_with_its_owner() {
        let Some(lab) = Lab::new() else { return };
        for namespaces in [Namespaces::None, Namespaces::Processes] {
            if namespaces == Namespaces::Processes && !rustix::process::geteuid().is_root() {
                continue;
            }
            let (group, other) = (make(&lab.0), make(&lab.0));
            let number = std::process::id();
            assert_eq!(groups(&lab.0), [format!("run-{number}-0"), format!("run-{number}-1")]);
            let null = fs::File::open("/dev/null").unwrap();
            let (stdin, _keeps_it) = std::io::pipe().unwrap();
            let birth = Birth {
                program: Path::new("/bin/cat"),
                variables: &[],
                stdin: std::os::fd::AsFd::as_fd(&stdin),
                stderr: std::os::fd::AsFd::as_fd(&null),
                handed: &[],
                namespaces,
                group: Some(group.entrance()),
            };
            let mut child = spawn::spawn(&birth).unwrap();
            assert_eq!(group.cgroup.processes().unwrap(), [child.pid()]);
            assert_eq!(other.cgroup.processes().unwrap(), [0; 0]);
            assert!(!group.is_out_of_memory());
            child.kill().unwrap();
            child.wait().unwrap();
            drop((group, other));
            assert_eq!(groups(&lab.0), [""; 0]);
        }
    }

    #[test]
    fn what_an_owner_that_was_killed_has_left_is_swept() {
        let Some(lab) = Lab::new() else { return };
        let alive = make(&lab.0);
        for name in ["run-1-0", "run-1-1", "i-1", "other"] {
            fs::create_dir(lab.0.join(name)).unwrap();
        }
        // One whose machine has not ended yet.
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(lab.0.join("run-1-1/cgroup.procs"), child.id().to_string()).unwrap();
        let next = make(&lab.0);
        let number = std::process::id();
        let left = [
            "i-1".to_owned(),
            "other".to_owned(),
            "run-1-1".to_owned(),
            format!("run-{number}-0"),
            format!("run-{number}-1"),
        ];
        assert_eq!(groups(&lab.0), left);
        child.kill().unwrap();
        child.wait().unwrap();
        drop((alive, next));
        drop(make(&lab.0));
        assert_eq!(groups(&lab.0), ["i-1", "other"]);
    }

    #[test]
    fn owners_who_come_and_go_at_once_take_nothing_from_each_other() {
        let Some(lab) = Lab::new() else { return };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let group = make(&lab.0);
                        assert!(group.cgroup.exists());
                    }
                });
            }
        });
        assert_eq!(groups(&lab.0), [""; 0]);
    }

    #[test]
    fn nobody_else_can_lock_it() {
        use std::os::unix::fs::MetadataExt;
        let Some(lab) = Lab::new() else { return };
        let parent = lab.0.join("parent");
        let group = make(&parent);
        for path in [&parent, &group.cgroup.path] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o711, "{}", path.display());
        }
        drop(group);
    }

    #[test]
    fn a_folder_that_is_no_group_is_refused_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let error = OwnGroup::make(&folder.path().join("mine"), 1, Some(64)).unwrap_err();
        assert!(matches!(error, Error::Unusable { .. }), "{error}");
        assert!(error.hint().unwrap().contains("--cgroup none"));
        assert_eq!(groups(folder.path()), [""; 0]);
        // In the folder of this process.
        let error = OwnGroup::make(Path::new("mine"), 1, Some(64)).unwrap_err();
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), ". is no cgroup v2");
    }

    #[test]
    fn it_is_the_group_that_was_out_of_memory_not_the_host() {
        let events = |oom, killed| {
            format!("low 0\nhigh 0\nmax 7\noom {oom}\noom_kill {killed}\noom_group_kill {killed}\n")
        };
        assert!(tells_of_too_much(&events(1, 1)));
        assert!(!tells_of_too_much(&events(0, 1)) && !tells_of_too_much(&events(0, 0)));
        assert!(!tells_of_too_much(""));
    }

    #[test]
    fn where_groups_usually_are() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path();
        assert_eq!(usual_parent(top, true, "0::/a\n"), Some(top.join("ec2vmm-run")));
        // Delegated is `user`, in which `app` has what systemd has started, and this process in a scope.
        fs::create_dir_all(top.join("user/app/scope")).unwrap();
        for file in ["cgroup.procs", "cgroup.subtree_control"] {
            fs::write(top.join("user/app/scope").join(file), "").unwrap();
            fs::write(top.join("user").join(file), "").unwrap();
        }
        let own = "1:name=systemd:/else\n0::/user/app/scope\n";
        assert_eq!(usual_parent(top, false, own), Some(top.join("user/ec2vmm-run")));
        for outside in ["0::/../../init\n", "0::/\n", "0::/user\n", "", "4:memory:/user/app\n"] {
            assert_eq!(usual_parent(top, false, outside), None, "{outside}");
        }
    }
}
