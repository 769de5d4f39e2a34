//! What was written is there after the machine process is killed: the file system is consistent, and every
//! record that the guest was told is safe can be read.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ec2vmm_vmm_api::Event;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    machine::{Machine, Plan},
    place, progress,
};

#[test]
#[ignore = "boots Linux"]
fn raw_disk() {
    survives_kills("raw");
}

#[test]
#[ignore = "boots Linux"]
fn qcow2_disk() {
    survives_kills("qcow2");
}

fn survives_kills(format: &str) {
    let folder = tempfile::tempdir().unwrap();
    let guest = Guest::make(folder.path(), format);
    let mut safe = 0;
    for kill in 0..kills() / 2 {
        let mut machine = guest.start();
        let first = number(&mut machine);
        assert!(first >= safe, "{format}, kill {kill}: record {first} was written anew");
        // At another point each time.
        let last = (0..kill * 7 % 23).fold(first, |_, _| number(&mut machine));
        let process = machine.process().expect("a machine process");
        kill_process(Pid::from_raw(process.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
        // All that it said before, too.
        let console = machine.end_of_killed();
        safe = console.rsplit("synced ").find_map(whole_number).map_or(last, |told| told.max(last)) + 1;
        guest.check(safe, &format!("{format}, kill {kill}"));
    }
}

/// How many kills, half of them to each format.
fn kills() -> u64 {
    std::env::var("EC2VMM_TEST_KILLS").map_or(50, |kills| kills.parse().expect("EC2VMM_TEST_KILLS: a number"))
}

fn number(machine: &mut Machine) -> u64 {
    machine.wait_for("synced ");
    let text = machine.rest_of_line();
    whole_number(&text).unwrap_or_else(|| panic!("not a record: {text:?}"))
}

fn whole_number(text: &str) -> Option<u64> {
    text.split_once('.')?.0.parse().ok()
}

struct Guest {
    folder: PathBuf,
    format: String,
}

impl Guest {
    /// A root of one program, and a data disk.
    fn make(folder: &Path, format: &str) -> Self {
        let path = |name: &str| folder.join(name);
        fs::create_dir_all(path("tree/sbin")).unwrap();
        for mount_point in ["dev", "proc", "data"] {
            fs::create_dir(path("tree").join(mount_point)).unwrap();
        }
        fs::copy(place::program("guest-tool"), path("tree/sbin/init")).unwrap();
        let tree = path("tree");
        run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(tree).arg(path("root")).arg("24M"));
        run(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(path("data.raw")).arg("64M"));
        if format == "qcow2" {
            run(Command::new("qemu-img")
                .args(["convert", "-O", "qcow2"])
                .args([path("data.raw"), path("data.qcow2")]));
        }
        fs::write(path("initrd"), initrd_of_minimal()).unwrap();
        Self { folder: folder.to_owned(), format: format.to_owned() }
    }

    fn disk(&self) -> PathBuf {
        self.folder.join(format!("data.{}", self.format))
    }

    fn start(&self) -> Machine {
        let plan = Plan::boot(&self.folder.join("root")).args(["--read-only", "--memory", "256M"]);
        let plan = plan.arg("--disk").arg(self.disk());
        let plan = plan.arg("--kernel").arg(place::image("vmlinux"));
        let plan = plan.arg("--initrd").arg(self.folder.join("initrd"));
        let mut machine = plan.args(["--append", "console=ttyS0 quiet root=/dev/vda ro"]).start();
        machine.wait_for_event(|event| matches!(event, Event::Running { .. }).then_some(()));
        machine
    }

    fn check(&self, safe: u64, when: &str) {
        let copy = self.folder.join("copy");
        if self.format == "qcow2" {
            run(Command::new("qemu-img").args(["check", "-q"]).arg(self.disk()));
            run(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(self.disk()).arg(&copy));
        } else {
            run(Command::new("cp").arg("--sparse=always").arg(self.disk()).arg(&copy));
        }
        // Replays the journal, as mounting does; the second must then find nothing at all.
        let replayed = Command::new("e2fsck").arg("-p").arg(&copy).output().unwrap();
        assert!(matches!(replayed.status.code(), Some(0 | 1)), "{when}: {}", text(&replayed));
        let checked = Command::new("e2fsck").arg("-fn").arg(&copy).output().unwrap();
        assert_eq!(checked.status.code(), Some(0), "{when}: {}", text(&checked));

        let log = self.folder.join("log");
        run(Command::new("debugfs").arg("-R").arg(format!("dump /log {}", log.display())).arg(&copy));
        let log = fs::read(log).unwrap();
        let records: Vec<&[u8]> = log.chunks_exact(RECORD_BYTES).collect();
        assert!(records.len() as u64 >= safe, "{when}: {} records of {safe} announced", records.len());
        for (number, record) in (0..safe).zip(records) {
            let wanted = number.to_le_bytes();
            assert!(record.chunks(8).all(|word| word == wanted), "{when}: record {number} is damaged");
        }
    }
}

/// The drivers of the disk, for the kernel of the same build.
fn initrd_of_minimal() -> Vec<u8> {
    let image = format!("{}?offset={MINIMAL_ROOT_BYTE}", place::image("minimal.raw").display());
    let folder = tempfile::tempdir().unwrap();
    let listing = run(Command::new("debugfs").args(["-R", "ls -p /boot"]).arg(&image));
    let name = listing.split('/').find(|name| name.starts_with("initrd.img-")).expect("an initrd in minimal");
    let initrd = folder.path().join("initrd");
    run(Command::new("debugfs").arg("-R").arg(format!("dump /boot/{name} {}", initrd.display())).arg(&image));
    fs::read(initrd).unwrap()
}

/// Runs a command that must succeed; gives its output.
pub(crate) fn run(command: &mut Command) -> String {
    progress::step(&format!("{command:?}"));
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Sector 2048; see docs/IMAGES.md.
const MINIMAL_ROOT_BYTE: u64 = 2048 * 512;
/// As guest-tool has it.
const RECORD_BYTES: usize = 1000;
