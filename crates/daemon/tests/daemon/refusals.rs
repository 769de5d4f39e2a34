//! Why it does not start: one line, a hint, an exit status of its own.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use expect_test::{Expect, expect};

use crate::place::Place;

#[track_caller]
fn check(place: &Place, command: &mut Command, code: i32, expected: &Expect) {
    let (status, told) = run(place, command);
    expected.assert_eq(&told);
    assert_eq!(status, Some(code));
}

fn run(place: &Place, command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.args(["--log", "off"]).output().unwrap();
    let told = String::from_utf8(stderr).unwrap().replace(place.folder.path().to_str().unwrap(), "FOLDER");
    (status.code(), told)
}

#[test]
fn a_second_daemon() {
    let place = Place::new();
    let first = place.start();
    let (status, told) = run(&place, &mut place.command());
    let told = told.replace(&format!("process {}", first.0.id()), "process PID");
    expect![[r#"
        ec2vmmd: the database cannot be used: FOLDER/state/ec2vmm.db is in use by process PID
        hint: one daemon has a database; stop that one, or use another --state-dir
    "#]]
    .assert_eq(&told);
    assert_eq!(status, Some(10));

    let mut same_socket = Command::new(env!("CARGO_BIN_EXE_ec2vmmd"));
    let folder = place.folder.path();
    same_socket.args(["--host", "simulated", "--socket"]).arg(&place.socket);
    same_socket.arg("--state-dir").arg(folder.join("other")).arg("--run-dir").arg(folder.join("run"));
    check(
        &place,
        &mut same_socket,
        10,
        &expect![[r#"
            ec2vmmd: another daemon answers on FOLDER/run/ec2vmmd.sock
            hint: stop that one, or use another --socket
        "#]],
    );
    assert_eq!(place.get("/healthz")["status"], "ok");
}

/// Another `--state-dir`, and so another database, but the same control group.
#[test]
#[allow(clippy::print_stderr, reason = "a test that leaves something out says so")]
fn a_second_daemon_on_the_same_machines() {
    let place = Place::new();
    let folder = place.folder.path();
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/kvm").exists() {
        return eprintln!("SKIPPED: not root, or no /dev/kvm");
    }
    // What it looks at of a host with control groups.
    fs::write(folder.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
    let group = folder.join("ec2vmm");
    fs::create_dir(&group).unwrap();
    let first = fs::File::open(&group).unwrap();
    rustix::fs::flock(&first, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut second = Command::new(env!("CARGO_BIN_EXE_ec2vmmd"));
    second.args(["--emulated-kvm", "--no-limits", "--vmm", "/bin/true", "--cgroup"]).arg(&group);
    second.arg("--state-dir").arg(folder.join("state")).arg("--run-dir").arg(folder.join("run"));
    check(
        &place,
        &mut second,
        10,
        &expect![[r#"
            ec2vmmd: this host cannot be taken: FOLDER/ec2vmm is in use by another process
            hint: one daemon has it; stop that one, or use another --cgroup and --run-dir
        "#]],
    );
}

#[test]
fn a_database_that_is_damaged() {
    let place = Place::new();
    fs::create_dir(place.folder.path().join("state")).unwrap();
    let path = place.folder.path().join("state/ec2vmm.db");
    fs::write(
        &path,
        "this is no database, and it is long enough to be looked at as if it were one. ".repeat(60),
    )
    .unwrap();
    let before = fs::read(&path).unwrap();
    let (status, told) = run(&place, &mut place.command());
    assert_eq!(status, Some(14), "{told}");
    assert!(told.contains("hint: ") && told.lines().count() == 2, "{told}");
    assert_eq!(fs::read(&path).unwrap(), before, "it is left as it was");
}

#[test]
fn folders_that_are_none() {
    let place = Place::new();
    fs::write(place.folder.path().join("run"), "a file").unwrap();
    check(
        &place,
        &mut place.command(),
        15,
        &expect![[r#"
            ec2vmmd: cannot write to the folder FOLDER/run: File exists (os error 17)
            hint: check that it is a folder, and that there is room
        "#]],
    );
}

#[test]
fn a_socket_that_cannot_be() {
    let place = Place::new();
    let long = place.folder.path().join("x".repeat(120));
    let (status, told) = run(&place, place.command().arg("--socket").arg(&long));
    assert_eq!(status, Some(15), "{told}");
    assert!(told.contains("hint: a socket's path is at most 107 bytes long"), "{told}");

    let file = place.folder.path().join("precious");
    fs::write(&file, "precious").unwrap();
    let (status, told) = run(&place, place.command().arg("--socket").arg(&file));
    assert_eq!(status, Some(15), "{told}");
    assert!(told.contains("hint: what is there is no socket"), "{told}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn real_machines_without_root() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    fs::set_permissions(place.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The program where anybody can read it.
    let program = place.folder.path().join("ec2vmmd");
    fs::copy(env!("CARGO_BIN_EXE_ec2vmmd"), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["--host", "linux"]).uid(65534).gid(65534);
    check(
        &place,
        &mut command,
        11,
        &expect![[r#"
            ec2vmmd: only root can run machines on this host
            hint: run it as root, or with --host simulated
        "#]],
    );
    let mut command = Command::new(&program);
    command.args(["--host", "simulated"]).uid(65534).gid(65534);
    let (status, told) = run(&place, &mut command);
    assert_eq!(status, Some(15), "{told}");
    assert!(told.contains("hint: run it as root, or name folders of your own"), "{told}");
}

#[test]
fn a_command_line_that_makes_no_sense() {
    let place = Place::new();
    for wrong in [["--network", "10.0.0.0/8"], ["--stop-grace", "soon"], ["--cpu-overcommit", "-1"]] {
        let (status, told) = run(&place, place.command().args(wrong));
        assert_eq!(status, Some(2), "{told}");
    }
    assert!(!place.folder.path().join("state").exists(), "nothing was touched");
}
