//! What flows between the command's standard streams, its files and the machine.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

use ec2vmm_vmm_api::config::{Boot, Format, MemoryBackend};
use expect_test::expect;
use rustix::process::Signal;

use crate::host::{Host, wait_until, write_key};

#[test]
fn input_reaches_the_guest_unchanged() {
    let host = Host::new("echo\nexit 0");
    let mut running = host.start("disk.raw");
    // Ctrl-A is a key of terminals only.
    running.child.stdin.as_mut().unwrap().write_all(b"a\x01x\xff\n").unwrap();
    let mut echoed = [0; 5];
    running.child.stdout.as_mut().unwrap().read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"a\x01x\xff\n");
    running.child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    running.ends(&expect![[r#"
        status 0
    "#]]);
}

#[test]
fn a_flood_arrives_whole() {
    const LINES: usize = 200_000;
    let host = Host::new(&format!("flood {LINES}\nexit 0"));
    let mut running = host.start("disk.raw");
    let stdout = BufReader::new(running.child.stdout.take().unwrap());
    let mut count = 0;
    for (number, line) in stdout.lines().enumerate() {
        assert_eq!(line.unwrap(), format!("line {number}"));
        count += 1;
    }
    assert_eq!(count, LINES);
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reader_that_does_not_read_holds_up_no_signal() {
    let host = Host::new("flood 1000000\nexit 0");
    let running = host.start("disk.raw");
    running.signal(Signal::TERM);
    let mut running = running;
    let stdout = running.child.stdout.take();
    assert_eq!(running.child.wait().unwrap().code(), Some(143));
    crate::host::assert_gone(running.machine);
    drop(stdout);
}

#[test]
fn a_console_file_keeps_the_newest() {
    let host = Host::new("flood 2000000\nexit 0");
    host.check(
        &mut host.run("disk.raw --console console.log"),
        &expect![[r#"
            status 0
        "#]],
    );
    let log = std::fs::read_to_string(host.path("console.log")).unwrap();
    assert!(log.len() <= 16 << 20 && log.len() > 8 << 20, "{}", log.len());
    assert!(log.ends_with("line 1999999\r\n"));
    let numbers: Vec<u64> =
        log.lines().map(|line| line.trim_end().strip_prefix("line ").unwrap().parse().unwrap()).collect();
    assert!(
        numbers.is_sorted() && numbers.len() as u64 == 2_000_000 - numbers[0],
        "nothing is missing between"
    );
}

#[test]
fn events_and_console_apart() {
    let host = Host::new("print Linux\nevent {\"event\":\"running\",\"us\":7}\nlog a warning\nexit 0");
    host.check(
        &mut host.run("disk.raw --json --console console.log"),
        &expect![[r#"
            status 0
            -- stdout
            {"event":"running","us":N}
            {"event":"ended","us":N,"exit":"power_off","failure":null}
            -- stderr
            a warning
        "#]],
    );
    assert_eq!(std::fs::read_to_string(host.path("console.log")).unwrap(), "Linux\r\n");
    let host = Host::new("event {\"event\":\"running\",\"us\":7}\nprint Linux\nexit 0");
    host.check(
        &mut host.run("disk.raw --json"),
        &expect![[r#"
            status 0
            -- stdout
            {"event":"running","us":N}
            {"event":"ended","us":N,"exit":"power_off","failure":null}
            -- stderr
            Linux
        "#]],
    );
}

#[test]
fn the_machine_gets_what_was_asked_for() {
    let host = Host::new("exit 0");
    write_key(&host.path("key.pub"));
    std::fs::copy(host.path("disk.raw"), host.path("data.raw")).unwrap();
    let words =
        "disk.raw --type t3.medium --disk data.raw,readonly,serial=vol-1 --key key.pub --append quiet";
    assert!(host.run(words).status().unwrap().success());
    let config = host.config();
    assert_eq!((config.cpus, config.memory_mib, config.identity.product.as_str()), (2, 4096, "t3.medium"));
    assert_eq!(config.identity.manufacturer, "ec2vmm");
    assert!(!config.identity.uuid.to_string().starts_with("ec2"));
    assert_eq!(
        config.boot,
        Boot::Disk { append: Some("systemd.mask=systemd-networkd-wait-online.service quiet".into()) }
    );
    let disks: Vec<_> =
        config.disks.iter().map(|disk| (disk.serial.as_str(), disk.read_only, disk.layers.len())).collect();
    assert_eq!(disks, [("root", false, 2), ("vol-1", true, 1), ("seed", true, 1)]);
    assert_eq!(config.disks[0].layers[0].format, Format::Qcow2);
    assert!(config.vsock.is_none() && config.nets.is_empty());

    std::fs::write(host.path("kernel"), "").unwrap();
    assert!(host.run("--kernel kernel --cpus 1 --memory 64M").status().unwrap().success());
    let config = host.config();
    assert!(matches!(config.boot, Boot::Files { initrd: None, cmdline, .. } if cmdline == "console=ttyS0"));
    assert_eq!((config.cpus, config.memory_mib, config.disks.len()), (1, 64, 0));
}

#[test]
fn a_snapshot_is_handed_over_as_it_was_asked_for() {
    let host = Host::new("exit 0");
    for folder in ["full", "later"] {
        std::fs::create_dir(host.path(folder)).unwrap();
        for name in ["state", "memory"] {
            std::fs::write(host.path(folder).join(name), "").unwrap();
        }
    }
    let backend = |words: &str| {
        assert!(
            host.run(&format!("disk.raw --restore full --restore later {words}")).status().unwrap().success()
        );
        let restore = host.config().restore.unwrap();
        assert_eq!(restore.memory.len(), 2);
        restore.backend
    };
    assert_eq!(backend(""), MemoryBackend::Mapped);
    assert_eq!(backend("--memory-backend mapped"), MemoryBackend::Mapped);
    let paged = "--memory-backend userfaultfd";
    let has_device = std::fs::File::options().read(true).write(true).open("/dev/userfaultfd").is_ok();
    let MemoryBackend::Userfaultfd { device, prefetch: None, record: None } = backend(paged) else {
        panic!()
    };
    assert_eq!(device.is_some(), has_device);
    let recorded = backend(&format!("{paged} --record-working-set set"));
    assert!(matches!(recorded, MemoryBackend::Userfaultfd { prefetch: None, record: Some(_), .. }));
    // It says what the guest does.
    assert_eq!(host.path("set").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let prefetched = backend(&format!("{paged} --prefetch set"));
    assert!(matches!(prefetched, MemoryBackend::Userfaultfd { prefetch: Some(_), record: None, .. }));
}

#[test]
fn a_control_socket_is_the_owners_alone() {
    let host = Host::new("serve\nexit 0");
    let running = host.start("disk.raw --control-socket control");
    let path = host.path("control");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"GET /machine HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    running.ends(&expect![[r#"
        status 0
        -- stdout
        GET /machine HTTP/1.1
    "#]]);
    wait_until("its name goes", || !path.exists());
}
