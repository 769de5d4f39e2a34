//! Linux goes on from a snapshot: processes, disk, clock, random numbers.

use std::{
    ffi::OsStr,
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use ec2vmm_vmm_api::{
    Event,
    control::{Metrics, State},
};

use crate::{
    hard_kills::run,
    machine::{Machine, Plan, poll},
    minimal::{power_off, ready},
    place,
};

/// A copy of the minimal image whose writes are kept.
fn disk(folder: &Path) -> std::path::PathBuf {
    let disk = folder.join("disk.raw");
    run(Command::new("cp").args(["--sparse=always", "--"]).arg(place::image("minimal.raw")).arg(&disk));
    disk
}

fn plan(disk: &Path) -> Plan {
    Plan::boot(disk).args(["--persist", "--memory", "256M"])
}

/// Writes the machine into a folder of its own, and ends it.
fn suspend(machine: Machine, folder: &Path) {
    let snapshot = Command::new(place::program("ec2vmm"))
        .args(["machine", "snapshot", "--power-off", "--control-socket"])
        .arg(machine.path("control"))
        .arg(folder)
        .output()
        .unwrap();
    assert!(snapshot.status.success(), "{}", String::from_utf8_lossy(&snapshot.stderr));
    assert_eq!(machine.end(), 0);
}

fn resume(disk: &Path, snapshot: &Path, words: &[&OsStr]) -> Machine {
    let mut machine = plan(disk).arg("--restore").arg(snapshot).args(words).start();
    machine.wait_for_event(|event| matches!(event, Event::Restored { .. }).then_some(()));
    assert_eq!(machine.view().state, State::Running);
    machine
}

/// Seconds that the guest's clock is off.
fn clock_error(machine: &mut Machine) -> u64 {
    let guest: u64 = machine.sh("date +%s").parse().unwrap();
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().abs_diff(guest)
}

#[test]
#[ignore = "boots Linux"]
fn linux_goes_on_under_load_with_the_right_time_and_numbers_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path());
    let mut machine = ready(plan(&disk));
    // Writes that are flushed, one after the other, for as long as there is power.
    machine.sh(
        "(i=0; while :; do i=$((i+1)); echo $i >/root/count.new; sync; mv /root/count.new /root/count; done) \
         >/dev/null 2>&1 & echo $! >/run/writer",
    );
    machine.sh("until test -s /root/count; do usleep 10000; done");
    let before: u64 = machine.sh("cat /root/count").parse().unwrap();
    let boot_id = machine.sh("cat /proc/sys/kernel/random/boot_id");
    let snapshot = folder.path().join("snapshot");
    suspend(machine, &snapshot);

    // Each with a disk of its own: as it was, with its times.
    let copies = ["second", "third"].map(|name| {
        let copy = folder.path().join(name);
        run(Command::new("cp").args(["-p", "--sparse=always", "--"]).arg(&disk).arg(&copy));
        copy
    });
    let [second, third] = &copies;
    // One has the file mapped, one has its pages brought, and the pages that this one touches come ahead in the last.
    let set = folder.path().join("set");
    let by_pager = |what: &'static str| ["--memory-backend", "userfaultfd", what].map(OsStr::new);
    let [backend, userfaultfd, record] = by_pager("--record-working-set");
    let recorded = [backend, userfaultfd, record, set.as_os_str()];
    let mut clones = [resume(&disk, &snapshot, &[]), resume(second, &snapshot, &recorded)];
    let mut numbers: Vec<_> = clones.iter_mut().map(|machine| goes_on(machine, before, &boot_id)).collect();
    clones.into_iter().for_each(end);
    assert!(set.metadata().unwrap().len() > 4096, "it has touched more than a thousand pages");
    let [backend, userfaultfd, prefetch] = by_pager("--prefetch");
    let mut ahead = resume(third, &snapshot, &[backend, userfaultfd, prefetch, set.as_os_str()]);
    numbers.push(goes_on(&mut ahead, before, &boot_id));
    poll("pages that come ahead", || {
        let metrics = ahead.request("GET", "/metrics", "");
        let metrics: Metrics = serde_json::from_str(&metrics).unwrap();
        (metrics.devices["pager"]["prefetched"] > 1000).then_some(())
    });
    end(ahead);
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), 3, "each has random numbers of its own");
    // The disk has changed, and the file system is whole.
    let plan = plan(&disk).arg("--restore").arg(&snapshot);
    let mut refused = plan.start();
    let failure = refused.wait_for_event(|event| match event {
        Event::Ended { failure, .. } => failure.clone(),
        _ => None,
    });
    assert!(failure.message.contains("has changed since the snapshot"), "{failure:?}");
    assert_eq!(refused.end(), 34);
    for disk in [&disk, second, third] {
        let check = Command::new("e2fsck").args(["-fn"]).arg(offset(disk)).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    }
}

/// A machine that goes on under load, as it was. Random numbers of its own.
fn goes_on(machine: &mut Machine, before: u64, boot_id: &str) -> String {
    assert!(clock_error(machine) <= 2, "the clock is {} s off", clock_error(machine));
    assert_eq!(machine.sh("cat /proc/sys/kernel/random/boot_id"), boot_id, "no boot");
    machine.sh("kill -0 $(cat /run/writer)");
    let now: u64 = machine.sh("cat /root/count").parse().unwrap();
    assert!(now >= before, "{now} after {before}");
    machine.sh(&format!("until test $(cat /root/count) -gt {now}; do usleep 10000; done"));
    let numbers = machine.sh("head -c 16 /dev/urandom | od -An -tx1");
    let dmesg = machine.sh("dmesg | tail -40");
    assert!(!dmesg.contains("BUG") && !dmesg.contains("stall"), "{dmesg}");
    numbers
}

fn end(mut machine: Machine) {
    machine.sh("kill $(cat /run/writer); sync");
    power_off(machine);
}

/// The image's root file system, as e2fsck takes it.
fn offset(disk: &Path) -> String {
    format!("{}?offset={}", disk.display(), 2048 * 512)
}
