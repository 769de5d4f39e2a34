//! The minimal image, which boots in seconds: what any Linux finds in a machine, and how machines end.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hasher},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use ec2vmm_vmm_api::{Event, control::PowerAction};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    hard_kills::run,
    machine::{Machine, Plan, is_machine, poll},
    place,
};

/// Boots to a quiet root shell.
pub(crate) fn ready(plan: Plan) -> Machine {
    let mut machine = plan.start();
    shell(&mut machine);
    machine
}

pub(crate) fn shell(machine: &mut Machine) {
    machine.wait_for("minimal ready");
    machine.quiet_shell();
}

pub(crate) fn power_off(mut machine: Machine) {
    machine.last_words("poweroff");
    assert_eq!(machine.end(), 0);
}

#[test]
#[ignore = "boots Linux"]
fn a_machine_and_its_reboots() {
    let image = place::image("minimal.raw");
    let before = digest(&image);
    let mut machine = ready(Plan::boot(&image).args(["--type", "t3.medium", "--hostname", "one"]));
    let loaded = machine.view().booted;
    assert!(loaded.kernel.contains("/boot/vmlinuz-"), "{loaded:?}");
    assert_eq!(machine.sh("nproc"), "2");
    assert_eq!(machine.sh("hostname"), "one");
    assert_eq!(machine.sh("cat /proc/cmdline"), loaded.cmdline);
    memory_is(&mut machine, 4096);
    the_clock_is_right(&mut machine);
    the_devices_are_there(&mut machine);
    machine.sh("echo kept by the machine >/root/note && sync");

    let process = machine.process();
    for reboots in 1..=3 {
        machine.last_words("reboot");
        machine.wait_for_event(|event| matches!(event, Event::Reset { .. }).then_some(()));
        shell(&mut machine);
        assert_eq!(machine.process(), process, "the machine process after {reboots} reboots");
        assert_eq!(machine.view().reboots, reboots);
        assert_eq!(machine.sh("cat /root/note"), "kept by the machine");
        assert_eq!(machine.sh("nproc"), "2");
    }
    // Nothing is lost that the guest has not written back: it is asked.
    machine.sh("echo written late >/root/note");
    machine.power(PowerAction::Reboot);
    machine.wait_for_event(|event| matches!(event, Event::Reset { .. }).then_some(()));
    shell(&mut machine);
    assert_eq!(machine.sh("cat /root/note"), "written late");
    machine.power(PowerAction::Reset);
    shell(&mut machine);
    assert_eq!(machine.process(), process);
    assert_eq!(machine.view().reboots, 5);

    machine.power(PowerAction::PowerButton);
    assert_eq!(machine.end(), 0);
    assert_eq!(digest(&image), before, "the image's bytes");
}

fn memory_is(machine: &mut Machine, mib: u64) {
    let total: u64 =
        machine.sh("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo").parse().unwrap();
    // The kernel itself and its page structures take some.
    let (least, most) = (mib * 1024 * 93 / 100, mib * 1024);
    assert!((least..=most).contains(&total), "{total} KiB of {mib} MiB");
}

fn the_clock_is_right(machine: &mut Machine) {
    assert_eq!(
        machine.sh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "kvm-clock"
    );
    let before = seconds_now();
    let guest: u64 = machine.sh("date +%s").parse().unwrap();
    let after = seconds_now();
    assert!((before.saturating_sub(2)..=after + 2).contains(&guest), "{guest} is not in {before}..{after}");
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn the_devices_are_there(machine: &mut Machine) {
    let functions = machine.sh("cat /sys/bus/pci/devices/*/uevent | grep -o 'PCI_ID=.*' | sort -u");
    // VIRTIO 1.2, 4.1.2.1: 0x1040 and the device's number. The last is pvpanic.
    for id in ["1AF4:1042", "1AF4:1044", "1AF4:1045", "1B36:0011"] {
        assert!(functions.contains(id), "no {id} in {functions}");
    }
    assert!(machine.sh("cat /sys/class/misc/hw_random/rng_current").starts_with("virtio_rng"));
    assert_eq!(machine.sh("dd if=/dev/hwrng bs=512 count=4 2>/dev/null | wc -c"), "2048");
    assert_eq!(machine.sh("cat /sys/block/vda/serial"), "root");
    assert!(machine.sh("cat /proc/interrupts").contains("MSI"), "interrupts are messages");
    assert_eq!(machine.sh("cat /sys/class/dmi/id/product_name"), "t3.medium");
}

#[test]
#[ignore = "boots Linux"]
fn writes_that_persist() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.qcow2");
    fs::copy(place::image("minimal.qcow2"), &image).unwrap();
    let mut machine = ready(Plan::boot(&image).arg("--persist"));
    machine.sh("dd if=/dev/urandom of=/root/kept bs=1M count=8 2>/dev/null");
    let sum = machine.sh("md5sum /root/kept");

    let second = Plan::boot(&image).arg("--persist").start();
    assert_eq!(second.end(), 25, "a disk in use");

    power_off(machine);
    run(Command::new("qemu-img").arg("check").arg(&image));
    let mut machine = ready(Plan::boot(&image));
    assert_eq!(machine.sh("md5sum /root/kept"), sum);
    install_kernel_and_reboot(&mut machine);
    power_off(machine);
}

/// Where the next boot differs from this one only in what was written since.
fn install_kernel_and_reboot(machine: &mut Machine) {
    machine.sh("cd /boot && for file in vmlinuz initrd.img; do cp $file-* $file-999.1; done");
    machine.sh(
        "cd /boot/loader/entries && sed -e 's/^version.*/version 999.1/' -e 's/\\(vmlinuz\\|initrd.img\\)-[^ ]*/\\1-999.1/' \
         -e 's/quiet/quiet new=kernel/' minimal-*.conf >minimal-999.1.conf",
    );
    machine.wait_for_event(|event| matches!(event, Event::Running { .. }).then_some(()));
    machine.last_words("reboot");
    let loaded = machine.wait_for_event(|event| match event {
        Event::Loaded { booted, .. } => Some(booted.clone()),
        _ => None,
    });
    assert!(loaded.kernel.ends_with("/boot/vmlinuz-999.1"), "{loaded:?}");
    assert!(loaded.initrd.is_some_and(|initrd| initrd.ends_with("/boot/initrd.img-999.1")));
    shell(machine);
    assert!(machine.sh("cat /proc/cmdline").contains("new=kernel"));
}

#[test]
#[ignore = "boots Linux"]
fn many_processors_and_memory_on_both_sides_of_the_hole() {
    let mut machine =
        ready(Plan::boot(&place::image("minimal.qcow2")).args(["--cpus", "4", "--memory", "4G"]));
    assert_eq!(machine.sh("nproc"), "4");
    memory_is(&mut machine, 4096);
    assert!(machine.sh("cat /proc/iomem").contains("100000000-13fffffff : System RAM"));
    // Busy on each at once.
    machine.sh("for cpu in 0 1 2 3; do taskset $((1 << cpu)) md5sum /boot/initrd.img-* & done; wait");
    power_off(machine);
}

#[test]
#[ignore = "boots Linux"]
fn more_disks() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    File::create(path("a.raw")).unwrap().set_len(64 << 20).unwrap();
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(path("b.qcow2")).arg("64M"));
    fs::write(path("c.raw"), vec![0x5a; 1 << 20]).unwrap();
    let option = |name: &str, options: &str| format!("{}{options}", path(name).display());
    let plan = Plan::boot(&place::image("minimal.raw"));
    let plan = plan.arg("--disk").arg(option("a.raw", ",serial=alpha"));
    let plan = plan.arg("--disk").arg(option("b.qcow2", ",serial=beta"));
    let plan = plan.arg("--disk").arg(option("c.raw", ",readonly"));
    let mut machine = ready(plan);
    assert_eq!(machine.sh("cat /sys/block/vd[bcd]/serial"), "alphabetadisk3");
    assert_eq!(machine.sh("cat /sys/block/vd[bcd]/ro"), "0\n0\n1");
    assert_eq!(machine.sh("cat /sys/block/vd[bcd]/size"), "131072\n131072\n2048");

    machine.sh("dd if=/dev/urandom of=/tmp/data bs=1M count=16 2>/dev/null");
    let sum = machine.sh("md5sum </tmp/data");
    for disk in ["vdb", "vdc"] {
        machine.sh(&format!("dd if=/tmp/data of=/dev/{disk} bs=1M seek=8 conv=fsync 2>/dev/null"));
        machine.sh("echo 3 >/proc/sys/vm/drop_caches");
        assert_eq!(machine.sh(&format!("dd if=/dev/{disk} bs=1M skip=8 count=16 2>/dev/null | md5sum")), sum);
    }
    assert_ne!(
        machine.try_sh("dd if=/dev/zero of=/dev/vdd bs=4k count=1 conv=fsync").0,
        0,
        "a disk for reading"
    );
    assert!(allocated(&path("a.raw")) >= 16 << 20);
    machine.sh("blkdiscard -o 8388608 -l 16777216 /dev/vdb");
    poll("the discarded part of the file is given back", || {
        (allocated(&path("a.raw")) < 1 << 20).then_some(())
    });
    power_off(machine);

    run(Command::new("qemu-img").arg("check").arg(path("b.qcow2")));
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).args([path("b.qcow2"), path("b.raw")]));
    let whole = fs::read(path("b.raw")).unwrap();
    fs::write(path("b.part"), &whole[8 << 20..24 << 20]).unwrap();
    assert!(run(Command::new("md5sum").arg(path("b.part"))).starts_with(sum.split(' ').next().unwrap()));
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
#[ignore = "boots Linux"]
fn memory_beyond_the_guests_and_memory_given_back() {
    let mut machine =
        ready(Plan::boot(&place::image("minimal.raw")).args(["--cpus", "1", "--memory", "512M"]));
    let process = machine.process().unwrap();
    let own = private_bytes(process, |len| len < 500 << 20);
    assert!(own <= OWN_BYTES_MAX, "{} KiB private to the machine process beside guest memory", own >> 10);

    let guests = |process| private_bytes(process, |len| len >= 500 << 20);
    machine.sh("dd if=/dev/zero of=/tmp/fill bs=1M count=200 2>/dev/null");
    let full = guests(process);
    assert!(full >= 200 << 20, "{full} bytes of guest memory");
    machine.sh("rm /tmp/fill");
    poll("freed pages are given back", || (guests(process) < full - (150 << 20)).then_some(()));
    power_off(machine);
}

/// The private pages of a process in those of its mappings whose length is `wanted`.
pub(crate) fn private_bytes(process: u32, wanted: impl Fn(u64) -> bool) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let (mut counted, mut bytes) = (false, 0);
    for line in maps.lines() {
        let first = line.split_whitespace().next().unwrap();
        if let Some((start, end)) = first.split_once('-') {
            let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
            counted = wanted(end - start);
        } else if counted && first.starts_with("Private_") {
            bytes += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10;
        }
    }
    bytes
}

#[test]
#[ignore = "boots Linux"]
fn a_panic_has_a_status() {
    let mut machine = ready(Plan::boot(&place::image("minimal.raw")));
    machine.last_words("echo c >/proc/sysrq-trigger");
    machine.wait_for_event(|event| matches!(event, Event::Panicked { .. }).then_some(()));
    assert_eq!(machine.end(), 31);
}

#[test]
#[ignore = "boots Linux"]
fn a_killed_command_ends_its_machine() {
    let machine = ready(Plan::boot(&place::image("minimal.raw")));
    let process = machine.process().unwrap();
    let killed = group(process);
    assert_eq!(fs::read_to_string(killed.join("pids.max")).unwrap(), "512\n");
    kill_process(pid(machine.command_process()), Signal::KILL).unwrap();
    poll("the machine process ends", || (!is_machine(process)).then_some(()));
    assert!(killed.exists(), "nobody is left to take it away");

    let machine = ready(Plan::boot(&place::image("minimal.raw")));
    assert!(!killed.exists(), "the next one has taken it away");
    let own = group(machine.process().unwrap());
    kill_process(pid(machine.command_process()), Signal::TERM).unwrap();
    assert_eq!(machine.end(), 128 + 15);
    assert!(!own.exists());
}

/// The control group of a machine of `ec2vmm run` by root.
fn group(process: u32) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    let group = Path::new("/sys/fs/cgroup").join(path);
    assert!(group.starts_with("/sys/fs/cgroup/ec2vmm-run"), "{}", group.display());
    group
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(process.try_into().unwrap()).unwrap()
}

#[test]
#[ignore = "boots Linux"]
fn given_kernels() {
    for kernel in ["vmlinuz", "vmlinux"] {
        let plan = Plan::new(["--json", "--memory", "256M", "--kernel"]).arg(place::image(kernel));
        let plan = plan.arg("--initrd").arg(place::image("bench-initrd"));
        let mut machine = plan.args(["--append", "console=ttyS0 quiet"]).start();
        machine.wait_for("bench: user space reached");
        assert_eq!(machine.end(), 0, "{kernel}");
    }
}

#[test]
#[ignore = "boots Linux"]
fn a_time_limit() {
    let machine = Plan::boot(&place::image("minimal.raw")).args(["--timeout", "1s"]).start();
    assert_eq!(machine.end(), 124);
}

fn digest(path: &Path) -> u64 {
    let mut file = File::open(path).unwrap();
    let mut digest = DefaultHasher::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut piece).unwrap();
        if read == 0 {
            return digest.finish();
        }
        digest.write(&piece[..read]);
    }
}

/// Of docs/PERFORMANCE.md.
const OWN_BYTES_MAX: u64 = 5 << 20;
