//! What is kept of machines while the host is up: a folder each, with its sockets, its plan and its record.
//! It is on a file system that forgets it when the host goes down, as it forgets the machines.
//!
//! Invariant: a machine's plan is there before its process, and goes after it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ec2vmm_model::ids::InstanceId;
use ec2vmm_vmm_api::{Event, config::RECORD_BYTES};
use serde::{Deserialize, Serialize};

use super::{changed, error::system};
use crate::host::{Ending, Error};

/// The folder of all machines.
#[derive(Clone, Debug)]
pub(super) struct RunDir {
    path: PathBuf,
}

/// The folder of one machine.
#[derive(Clone, Debug)]
pub(super) struct MachineDir {
    path: PathBuf,
}

/// Which machine it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Plan {
    pub(super) instance: InstanceId,
    pub(super) generation: u64,
    /// The user id of its process, if it has one of its own.
    #[serde(default)]
    pub(super) id: Option<u32>,
}

impl RunDir {
    pub(super) fn start(path: PathBuf) -> Result<Self, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(system(format!("making the folder {}", path.display())))?;
        Ok(Self { path })
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a machine, there or not.
    pub(super) fn of(&self, instance: &InstanceId) -> MachineDir {
        MachineDir { path: self.path.join(instance.as_str()) }
    }

    /// Whose folders there are.
    pub(super) fn list(&self) -> Result<Vec<InstanceId>, Error> {
        let entries = fs::read_dir(&self.path).map_err(system("reading the folder of machines"))?;
        let id = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        Ok(entries.filter_map(id).collect())
    }
}

impl MachineDir {
    /// Makes an empty folder, with the plan in it.
    pub(super) fn create(&self, plan: &Plan) -> Result<(), Error> {
        self.remove()?;
        let failed = || system(format!("making the folder {}", self.path.display()));
        DirBuilder::new().mode(0o700).create(&self.path).map_err(failed())?;
        changed(format_args!("made {}", self.path.display()));
        let text = serde_json::to_string(plan).map_err(io::Error::from).map_err(failed())?;
        self.put("plan", &text)
    }

    /// A file of the folder that is never seen half written.
    pub(super) fn put(&self, name: &str, text: &str) -> Result<(), Error> {
        let (path, new) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let failed = || system(format!("writing {}", path.display()));
        fs::write(&new, text).map_err(failed())?;
        changed(format_args!("wrote {}", new.display()));
        fs::rename(&new, &path).map_err(failed())?;
        changed(format_args!("called it {}", path.display()));
        Ok(())
    }

    /// Makes an empty file to hand to the machine process.
    pub(super) fn file(&self, name: &str) -> Result<File, Error> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.read(true).append(name == LOG).write(true).create(true).mode(0o600);
        let file = options.open(&path).map_err(system(format!("making {}", path.display())))?;
        changed(format_args!("made {}", path.display()));
        Ok(file)
    }

    /// Whether there is such a folder.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Which machine it is; nothing where it did not get that far, or is gone.
    pub(super) fn plan(&self) -> Result<Option<Plan>, Error> {
        match fs::read_to_string(self.path.join("plan")) {
            Ok(text) => Ok(serde_json::from_str(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(system(format!("reading the plan in {}", self.path.display()))(error)),
        }
    }

    /// How a machine has ended whose process is gone.
    pub(super) fn ending(&self) -> Result<Ending, Error> {
        let path = self.path.join(RECORD);
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(RECORD_BYTES).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ending::Silent),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Ending::Silent),
            Err(error) => return Err(system(format!("reading {}", path.display()))(error)),
        }
        match serde_json::from_str(&text) {
            Ok(Event::Ended { exit, failure, .. }) => Ok(Ending::Told { exit, failure }),
            // It was killed while it did this.
            Ok(_) => Ok(Ending::Silent),
            Err(error) => {
                if !text.trim_matches('\0').trim().is_empty() {
                    tracing::warn!(path = %path.display(), %error, "a machine's last record makes no sense");
                }
                Ok(Ending::Silent)
            }
        }
    }

    /// The number that the machine's process has, or had; 0 where it did not get that far.
    pub(super) fn pid(&self) -> u32 {
        let text = fs::read_to_string(self.path.join("pid")).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    }

    /// The last of what the process has logged: why it did not start, where it could not say so otherwise.
    pub(super) fn last_words(&self) -> Option<String> {
        let log = fs::read(self.path.join(LOG)).ok()?;
        let log = String::from_utf8_lossy(&log);
        let line = log.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.chars().take(LINE_MAX).collect())
    }

    pub(super) fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    pub(super) fn console_socket(&self) -> PathBuf {
        self.path.join("console.sock")
    }

    /// Removes the folder, if it is there.
    pub(super) fn remove(&self) -> Result<(), Error> {
        // The plan last: without it nobody would know what the rest was.
        let failed = |path: &Path| system(format!("removing {}", path.display()));
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(&self.path)(error)),
        };
        for entry in entries {
            let path = entry.map_err(failed(&self.path))?.path();
            if path.file_name().is_some_and(|name| name != "plan") {
                fs::remove_file(&path).map_err(failed(&path))?;
                changed(format_args!("removed {}", path.display()));
            }
        }
        fs::remove_dir_all(&self.path).map_err(failed(&self.path))
    }
}

/// The file of the last event.
pub(super) const RECORD: &str = "record";
/// The process's own messages.
pub(super) const LOG: &str = "log";
const LINE_MAX: usize = 500;

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use ec2vmm_model::ids::InstanceId;
    use ec2vmm_vmm_api::Exit;

    use super::{LOG, Plan, RECORD, RunDir};
    use crate::host::Ending;

    #[test]
    fn a_machine_leaves_its_plan_and_how_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::start(folder.path().join("run/machines")).unwrap();
        let instance = InstanceId::from_random(7);
        let machine = run_dir.of(&instance);
        assert_eq!(machine.plan().unwrap(), None);
        let plan = Plan { instance: instance.clone(), generation: 3, id: Some(70_000) };
        machine.create(&plan).unwrap();
        assert_eq!(machine.plan().unwrap(), Some(plan.clone()));
        assert_eq!(machine.ending().unwrap(), Ending::Silent);
        let mut record = machine.file(RECORD).unwrap();
        assert_eq!(machine.ending().unwrap(), Ending::Silent);
        record
            .write_all(b"{\"event\":\"ended\",\"us\":1,\"exit\":\"power_off\",\"failure\":null}  \n")
            .unwrap();
        assert_eq!(machine.ending().unwrap(), Ending::Told { exit: Exit::PowerOff, failure: None });
        machine.file(LOG).unwrap().write_all(b"one\ntwo\n\n").unwrap();
        assert_eq!(machine.last_words().as_deref(), Some("two"));
        assert_eq!(run_dir.list().unwrap(), [instance]);
        machine.create(&plan).unwrap();
        assert_eq!(machine.ending().unwrap(), Ending::Silent);
        machine.remove().unwrap();
        machine.remove().unwrap();
        assert_eq!(run_dir.list().unwrap(), []);
    }

    #[test]
    fn what_makes_no_sense_is_as_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let machine = RunDir::start(folder.path().to_owned()).unwrap().of(&InstanceId::from_random(7));
        fs::create_dir(&machine.path).unwrap();
        fs::write(machine.path.join("plan"), "{").unwrap();
        fs::write(machine.path.join(RECORD), b"\xff\xfe{").unwrap();
        assert_eq!((machine.plan().unwrap(), machine.ending().unwrap()), (None, Ending::Silent));
    }
}
