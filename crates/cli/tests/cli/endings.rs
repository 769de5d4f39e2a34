//! Every way in which a machine ends, and what the command makes of it.

use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

use expect_test::expect;
use rustix::process::Signal;

use crate::host::{Host, assert_gone};

#[test]
fn the_machine_ends_by_itself() {
    let power_off = r#"event {"event":"ended","us":9,"exit":"power_off","failure":null}"#;
    let host = Host::new(&format!("print Linux\n{power_off}\nexit 0"));
    host.check(
        &mut host.run("disk.raw"),
        &expect![[r#"
        status 0
        -- stdout
        Linux
    "#]],
    );
    let host = Host::new(
        "print Linux\nlog registers: rip 0\n\
         event {\"event\":\"ended\",\"us\":9,\"exit\":{\"failed\":\"triple_fault\"},\"failure\":\
         {\"kind\":\"triple_fault\",\"message\":\"the guest's processor shut down\",\"hint\":null}}\nexit 30",
    );
    host.check(
        &mut host.run("disk.raw"),
        &expect![[r#"
        status 30
        -- stdout
        Linux
        -- stderr
        registers: rip 0
        ec2vmm: the guest's processor shut down
        hint: the guest's processor gave up; the registers above tell where
    "#]],
    );
    host.check(&mut host.run("disk.raw --json"), &expect![[r#"
        status 30
        -- stdout
        {"event":"ended","us":N,"exit":{"failed":"triple_fault"},"failure":{"kind":"triple_fault","message":"the guest's processor shut down","hint":null}}
        -- stderr
        Linux
        registers: rip 0
        ec2vmm: the guest's processor shut down
        hint: the guest's processor gave up; the registers above tell where
    "#]]);
    let host = Host::new("exit 77");
    host.check(
        &mut host.run("disk.raw"),
        &expect![[r#"
        status 1
        -- stderr
        ec2vmm: the machine process ended with status 77 and did not say why
        hint: what it wrote before may tell; else please report it
    "#]],
    );
    let host = Host::new("print last words\ncrash");
    host.check(
        &mut host.run("disk.raw"),
        &expect![[r#"
            status 1
            -- stdout
            last words
            -- stderr
            ec2vmm: the machine process was ended by signal 4 and did not say why
            hint: what it wrote before may tell; else please report it
        "#]],
    );
    let host = Host::new("print last words\nforbidden");
    let output = host.run("disk.raw").output().unwrap();
    let shown = host.show(&output);
    // The host's kernel log may name the call.
    assert!(shown.starts_with("status 36\n"), "{shown}");
    assert!(shown.contains("ec2vmm: the machine process was killed by its sandbox: it made"), "{shown}");
    let host = Host::new("event nonsense\nexit 0");
    host.check(
        &mut host.run("disk.raw"),
        &expect![[r#"
        status 0
        -- stderr
        ec2vmm: the machine process reported something unknown: expected ident at line 1 column 2
    "#]],
    );
}

#[test]
fn signals() {
    for (signal, status) in [
        (Signal::INT, "status 130"),
        (Signal::TERM, "status 143"),
        (Signal::HUP, "status 129"),
        (Signal::QUIT, "status 131"),
    ] {
        let host = Host::new("print up\nwait");
        let running = host.start("disk.raw --control-socket control --vsock vsock");
        assert!(host.path("control").exists() && host.path("vsock").exists());
        running.signal(signal);
        let machine = running.machine;
        let output = running.child.wait_with_output().unwrap();
        assert_eq!(crate::host::show_status(output.status), status);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "up\r\nreleased\r\n");
        assert!(output.stderr.is_empty());
        assert_gone(machine);
        host.assert_clean();
        assert!(!host.path("control").exists() && !host.path("vsock").exists());
    }
}

#[test]
fn a_second_signal_does_not_ask() {
    let host = Host::new("print up\nstuck");
    let mut running = host.start("disk.raw");
    let mut line = String::new();
    let mut stdout = BufReader::new(running.child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "up\r\n");
    running.signal(Signal::INT);
    running.signal(Signal::TERM);
    running.signal(Signal::TERM);
    assert_gone(running.machine);
    let status = running.child.wait().unwrap();
    assert!(matches!(status.code(), Some(130 | 143)), "{status}");
    host.assert_clean();
}

#[test]
fn a_machine_that_does_not_let_go_is_killed() {
    let host = Host::new("stuck");
    let running = host.start("disk.raw");
    running.signal(Signal::TERM);
    running.ends(&expect![[r#"
        status 143
    "#]]);
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let host = Host::new("print up\nprint still up\necho\nexit 0");
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_ec2vmm")]);
    let like = host.run("disk.raw");
    command.args(like.get_args()).current_dir(like.get_current_dir().unwrap());
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = host.spawn(&mut command);
    running.signal(Signal::HUP);
    std::io::Write::write_all(running.child.stdin.as_mut().unwrap(), b"hello q").unwrap();
    running.ends(&expect![[r#"
        status 0
        -- stdout
        up
        still up
        hello
    "#]]);
}

#[test]
fn kill_9_of_the_command_ends_the_machine() {
    let host = Host::new("wait");
    let mut running = host.start("disk.raw");
    running.signal(Signal::KILL);
    running.child.wait().unwrap();
    assert_gone(running.machine);
    host.assert_clean();
}

#[test]
fn a_closed_output_ends_the_machine() {
    let host = Host::new("print up\nwait");
    let mut running = host.start("disk.raw");
    // The guest says nothing more, so nothing is written that could fail.
    drop(running.child.stdout.take());
    running.ends(&expect![[r#"
        status 141
    "#]]);
    let host = Host::new("event {\"event\":\"running\",\"us\":1}\nwait");
    let mut running = host.start("disk.raw --json");
    drop(running.child.stdout.take());
    running.ends(&expect![[r#"
        status 141
        -- stderr
        released
    "#]]);
    let host = Host::new("wait");
    let mut running = host.start("disk.raw --json");
    drop(running.child.stderr.take());
    running.ends(&expect![[r#"
        status 141
    "#]]);
}

#[test]
fn time_passes() {
    let host = Host::new("print still booting\nwait");
    host.check(
        &mut host.run("disk.raw --timeout 300ms"),
        &expect![[r#"
        status 124
        -- stdout
        still booting
        released
        -- stderr
        ec2vmm: the machine had not ended by itself after 300ms
        hint: its console output tells how far it came; give it more time with `--timeout`
    "#]],
    );
    host.check(&mut host.run("disk.raw --timeout 300ms --json"), &expect![[r#"
        status 124
        -- stdout
        {"event":"ended","us":N,"exit":{"failed":"timeout"},"failure":{"kind":"timeout","message":"the machine had not ended by itself after 300ms","hint":"its console output tells how far it came; give it more time with `--timeout`"}}
        -- stderr
        still booting
        released
        ec2vmm: the machine had not ended by itself after 300ms
        hint: its console output tells how far it came; give it more time with `--timeout`
    "#]]);
    let host = Host::new("exit 0");
    host.check(
        &mut host.run("disk.raw --timeout 1h"),
        &expect![[r#"
        status 0
    "#]],
    );
}

#[test]
fn the_end_of_input_is_not_the_end() {
    let host = Host::new("print up\nwait");
    let mut running = host.start("disk.raw");
    drop(running.child.stdin.take());
    let mut stdout = running.child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 4]).unwrap();
    assert_eq!(running.child.try_wait().unwrap(), None);
    running.child.stdout = Some(stdout);
    running.signal(Signal::TERM);
    running.ends(&expect![[r#"
        status 143
        -- stdout
        released
    "#]]);
}
