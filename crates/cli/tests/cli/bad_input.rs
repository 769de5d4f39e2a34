//! What cannot be run: one line that says what and where, one that says what to do, a status of its own, and
//! nothing left behind.

use std::{fs::File, process::Command};

use expect_test::expect;

use crate::host::{Host, write_key};

#[test]
fn images() {
    let host = Host::new("");
    std::fs::write(host.path("empty"), "").unwrap();
    std::fs::write(host.path("text"), "hello").unwrap();
    std::fs::write(host.path("broken.qcow2"), [b"QFI\xfb".as_slice(), &[0; 1020]].concat()).unwrap();
    std::fs::write(host.path("cloud.img"), [b"QFI\xfb".as_slice(), &[0; 1020]].concat()).unwrap();
    std::fs::write(host.path("not.qcow2"), [0; 1024]).unwrap();
    host.check(
        &mut host.run("none.raw"),
        &expect![[r#"
        status 10
        -- stderr
        ec2vmm: none.raw: no such file
        hint: check the name; `scripts/build-image debian-12` makes an image to start with
    "#]],
    );
    host.check(
        &mut host.run("."),
        &expect![[r#"
        status 11
        -- stderr
        ec2vmm: .: a folder, not a disk
        hint: a raw or qcow2 disk image is wanted; `qemu-img convert -O qcow2 OLD NEW` makes one of others
    "#]],
    );
    host.check(
        &mut host.run("/dev/null"),
        &expect![[r#"
        status 11
        -- stderr
        ec2vmm: /dev/null: a special file, not a disk
        hint: a raw or qcow2 disk image is wanted; `qemu-img convert -O qcow2 OLD NEW` makes one of others
    "#]],
    );
    host.check(
        &mut host.run("empty"),
        &expect![[r#"
        status 11
        -- stderr
        ec2vmm: empty: empty, not a disk
        hint: a raw or qcow2 disk image is wanted; `qemu-img convert -O qcow2 OLD NEW` makes one of others
    "#]],
    );
    host.check(
        &mut host.run("text"),
        &expect![[r#"
        status 11
        -- stderr
        ec2vmm: text: layer 0 holds only 5 bytes: not a disk
        hint: a raw or qcow2 disk image is wanted; `qemu-img convert -O qcow2 OLD NEW` makes one of others
    "#]],
    );
    host.check(
        &mut host.run("broken.qcow2"),
        &expect![[r#"
        status 12
        -- stderr
        ec2vmm: broken.qcow2: broken qcow2 file: qcow2 version 0 is not supported: 2 and 3 are
        hint: `qemu-img check FILE` says more; or fetch the file again
    "#]],
    );
    host.check(
        &mut host.run("not.qcow2"),
        &expect![[r#"
        status 12
        -- stderr
        ec2vmm: not.qcow2: broken qcow2 file: not a qcow2 file: it does not start with the qcow2 magic number
        hint: say `--format raw` if it is a raw disk
    "#]],
    );
    host.check(
        &mut host.run("cloud.img"),
        &expect![[r#"
        status 2
        -- stderr
        ec2vmm: cloud.img starts like a qcow2 file, but its name does not say so
        hint: say which it is: `--format qcow2`, or `--format raw` for the bytes as they are
    "#]],
    );
    host.check(
        &mut host.run("disk.raw --disk none.raw"),
        &expect![[r#"
        status 10
        -- stderr
        ec2vmm: none.raw: no such file
        hint: check the name; `scripts/build-image debian-12` makes an image to start with
    "#]],
    );
    host.check(
        &mut host.run(""),
        &expect![[r#"
            status 2
            -- stderr
            error: the following required arguments were not provided:
              <IMAGE>

            Usage: ec2vmm run --cgroup <FOLDER|none> <IMAGE>

            For more information, try '--help'.
        "#]],
    );
}

#[test]
fn a_chain_that_bites_its_tail() {
    let host = Host::new("");
    for (name, below) in [("a.qcow2", "b.qcow2"), ("b.qcow2", "a.qcow2")] {
        std::fs::write(host.path(name), qcow2_on(below)).unwrap();
    }
    host.check(
        &mut host.run("a.qcow2"),
        &expect![[r#"
        status 12
        -- stderr
        ec2vmm: a.qcow2: the chain of backing files comes back to this file
        hint: `qemu-img check FILE` says more; or fetch the file again
    "#]],
    );
    std::fs::write(host.path("c.qcow2"), qcow2_on("gone.qcow2")).unwrap();
    host.check(
        &mut host.run("c.qcow2"),
        &expect![[r#"
        status 12
        -- stderr
        ec2vmm: c.qcow2: cannot open its backing file: gone.qcow2: no such file
        hint: name the right file with `qemu-img rebase -u -F FORMAT -b FILE c.qcow2`
    "#]],
    );
}

#[test]
fn sizes() {
    let host = Host::new("");
    host.check(
        &mut host.run("disk.raw --type t3.mirco"),
        &expect![[r#"
        status 17
        -- stderr
        ec2vmm: there is no instance type `t3.mirco`
        hint: did you mean t3.micro?
    "#]],
    );
    host.check(
        &mut host.run("disk.raw --type t4g.micro"),
        &expect![[r#"
        status 17
        -- stderr
        ec2vmm: instance type `t4g.micro` has arm64 processors, and only x86_64 machines can be run
        hint: take t3.micro
    "#]],
    );
    host.check(
        &mut host.run("disk.raw --cpus 65"),
        &expect![[r#"
        status 19
        -- stderr
        ec2vmm: --cpus asks for 65 vCPUs, and a machine can have 1 to 64
        hint: choose a smaller type, or `--cpus` and `--memory`
    "#]],
    );
    host.check(
        &mut host.run("disk.raw --memory 16M"),
        &expect![[r#"
        status 18
        -- stderr
        ec2vmm: 16777216 bytes of memory are too little: a machine needs 32 MiB
        hint: say `--memory 32M` or more
    "#]],
    );
    host.check(
        &mut host.run("disk.raw --memory lots"),
        &expect![[r#"
        status 2
        -- stderr
        error: invalid value 'lots' for '--memory <SIZE>': `lots` is not a size: write 512M, 4G or 1.5G

        For more information, try '--help'.
    "#]],
    );
    let output = host.run("disk.raw --memory 1000000G").output().unwrap();
    assert_eq!(output.status.code(), Some(18));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("1024000000 MiB of memory, and this host has"), "{said}");
    assert!(said.contains("hint: ask for at most"), "{said}");
}

#[test]
fn the_host() {
    let host = Host::new("");
    host.check(&mut host.command("run --emulated-kvm --kvm-device nothing disk.raw"), &expect![[r#"
        status 20
        -- stderr
        ec2vmm: cannot open nothing: No such file or directory (os error 2)
        hint: load the driver with `modprobe kvm_intel` or `modprobe kvm_amd`; on a virtual machine, switch nested virtualization on; else run inside `scripts/lab`
    "#]]);
    host.check(
        &mut host.run("disk.raw --net tap=ec2vmm-none"),
        &expect![[r#"
        status 23
        -- stderr
        ec2vmm: there is no network interface `ec2vmm-none`
        hint: make it with `ip tuntap add ec2vmm-none mode tap && ip link set ec2vmm-none up`
    "#]],
    );
    host.check(
        &mut host.run("disk.raw --net tap=lo"),
        &expect![[r#"
        status 23
        -- stderr
        ec2vmm: network interface `lo` is not a tap
        hint: `ip tuntap show` lists the taps of this host
    "#]],
    );
    host.check(
        &mut host.command("run --emulated-kvm --kvm-device kvm --cgroup groups/mine disk.raw"),
        &expect![[r#"
            status 35
            -- stderr
            ec2vmm: no control group can be made in groups/mine: groups is no cgroup v2
            hint: name a group whose parent has the controllers cpu, memory and pids and which this user may make; or run without limits (`--cgroup none`)
        "#]],
    );
    host.check(
        host.run("disk.raw").env("EC2VMM_VMM", "./nothing"),
        &expect![[r#"
            status 1
            -- stderr
            ec2vmm: cannot start ./nothing: executing it: No such file or directory (os error 2)
        "#]],
    );
    host.check(
        host.run("disk.raw").env("TMPDIR", "./nothing"),
        &expect![[r#"
        status 1
        -- stderr
        ec2vmm: cannot make a temporary file in ./nothing: No such file or directory (os error 2)
        hint: name a folder with room in the variable TMPDIR
    "#]],
    );
    let has_it = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if !has_it.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")) {
        host.check(&mut host.command("run --kvm-device kvm disk.raw"), &expect![[r#"
            status 22
            -- stderr
            ec2vmm: this host's processors have no hardware virtualization: /proc/cpuinfo shows neither vmx nor svm
            hint: Linux cannot be run here; `scripts/lab run -- ec2vmm run ...` brings its own virtualization
        "#]]);
    }
}

/// In namespaces of its own; where this user may not make any, there is nothing to test.
#[test]
fn taps() {
    let host = Host::new("wait");
    let script = r#"
        mount -t sysfs sysfs /sys && ip tuntap add busy mode tap && ip tuntap add many mode tap multi_queue &&
        ip tuntap add tun mode tun || exit 99
        "$@" --net tap=busy --timeout 1m >/dev/null 2>&1 &
        while [ ! -e config.json ]; do :; done
        for tap in busy tun; do "$@" --net tap=$tap; echo status $?; done
        "$@" --net tap=many --timeout 1s >/dev/null 2>&1; echo status $?
        kill $! && wait
        ip -o link | cut -d: -f2
    "#;
    let like = host.run("disk.raw");
    let mut command = Command::new("unshare");
    command.args(["-rnm", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_ec2vmm")]).args(like.get_args());
    command.current_dir(like.get_current_dir().unwrap());
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    if matches!(output.status.code(), Some(1 | 99)) {
        return;
    }
    expect![[r#"
        status 24
        status 23
        status 124
         lo
         busy
         many
         tun
        -- stderr
        ec2vmm: tap `busy` is in use by another process
        hint: give each machine a tap of its own
        ec2vmm: network interface `tun` is not a tap
        hint: `ip tuntap show` lists the taps of this host
    "#]]
    .assert_eq(
        &[output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).join("-- stderr\n"),
    );
    host.assert_clean();
}

#[test]
fn what_the_guest_is_told() {
    let host = Host::new("");
    std::fs::write(host.path("id"), "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
    std::fs::write(host.path("large"), vec![b'#'; 16 * 1024 + 1]).unwrap();
    host.check(
        &mut host.run("disk.raw --key none.pub"),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot read none.pub: No such file or directory (os error 2)
            hint: check the name and what the file holds; `ec2vmm run --help` says what is wanted
        "#]],
    );
    host.check(&mut host.run("disk.raw --key id"), &expect![[r#"
        status 26
        -- stderr
        ec2vmm: id holds a private key
        hint: private keys stay with you: give the public one, most likely id.pub, or get it with `ssh-keygen -y -f id`
    "#]]);
    host.check(
        &mut host.run("disk.raw --user-data large"),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: user data large is larger than 16384 bytes
            hint: EC2 has the same limit: have the user data fetch what does not fit, or compress it with gzip
        "#]],
    );
    host.check(
        &mut host.run("disk.raw --hostname no_good"),
        &expect![[r#"
            status 2
            -- stderr
            ec2vmm: `no_good` is not a host name
            hint: use letters, digits and hyphens, 63 to a label, 64 in all (RFC 1123), such as `web-1`
        "#]],
    );
    host.check(
        &mut host.run("--kernel none"),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot read none: No such file or directory (os error 2)
            hint: check the name and what the file holds; `ec2vmm run --help` says what is wanted
        "#]],
    );
    host.check(
        &mut host.run("disk.raw --initrd x"),
        &expect![[r#"
            status 2
            -- stderr
            error: the following required arguments were not provided:
              --kernel <FILE>

            Usage: ec2vmm run --kernel <FILE> --cgroup <FOLDER|none> --initrd <FILE> <IMAGE>

            For more information, try '--help'.
        "#]],
    );
}

#[test]
fn snapshots() {
    let host = Host::new("");
    std::fs::create_dir(host.path("full")).unwrap();
    for words in
        ["disk.raw --memory-backend mapped", "disk.raw --prefetch x", "disk.raw --record-working-set x"]
    {
        let output = host.run(words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--restore <DIR>"), "{said}");
    }
    for words in ["disk.raw --restore full --prefetch x", "disk.raw --restore full --record-working-set x"] {
        host.check(
            &mut host.run(words),
            &expect![[r#"
                status 2
                -- stderr
                ec2vmm: --record-working-set and --prefetch are for memory that is brought in page by page
                hint: say `--memory-backend userfaultfd` too
            "#]],
        );
    }
    host.check(
        &mut host.run("disk.raw --restore full"),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot read full/state: No such file or directory (os error 2)
            hint: check the name and what the file holds; `ec2vmm run --help` says what is wanted
        "#]],
    );
    for name in ["state", "memory"] {
        std::fs::write(host.path("full").join(name), "").unwrap();
    }
    let paged = "disk.raw --restore full --memory-backend userfaultfd";
    host.check(
        &mut host.run(&format!("{paged} --prefetch none")),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot read none: No such file or directory (os error 2)
            hint: check the name and what the file holds; `ec2vmm run --help` says what is wanted
        "#]],
    );
    host.check(
        &mut host.run(&format!("{paged} --record-working-set .")),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot write the working set to .: not a regular file
            hint: check the name and what the file holds; `ec2vmm run --help` says what is wanted
        "#]],
    );
    host.check(
        &mut host.run(&format!("{paged} --record-working-set disk.raw")),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot write the working set to disk.raw: the file is in use by another machine, or as a disk
            hint: check the name and what the file holds; `ec2vmm run --help` says what is wanted
        "#]],
    );
}

#[test]
fn outputs() {
    let host = Host::new("wait");
    write_key(&host.path("key.pub"));
    host.check(
        &mut host.run("disk.raw --control-socket key.pub"),
        &expect![[r#"
        status 26
        -- stderr
        ec2vmm: key.pub exists and is not a socket
        hint: choose another path
    "#]],
    );
    host.check(
        &mut host.run("disk.raw --vsock none/socket"),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot listen on socket none/socket: No such file or directory (os error 2)
            hint: check the name and what the file holds; `ec2vmm run --help` says what is wanted
        "#]],
    );
    host.check(
        &mut host.run("disk.raw --console ."),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot write console output to .: not a regular file
            hint: check the name and what the file holds; `ec2vmm run --help` says what is wanted
        "#]],
    );
    host.check(
        &mut host.run("disk.raw --console disk.raw"),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot write console output to disk.raw: the file is in use by another machine, or as a disk
            hint: check the name and what the file holds; `ec2vmm run --help` says what is wanted
        "#]],
    );
    assert_eq!(host.path("disk.raw").metadata().unwrap().len(), 1 << 20, "a disk is not emptied");
    let listener = std::os::unix::net::UnixListener::bind(host.path("socket")).unwrap();
    host.check(
        &mut host.run("disk.raw --control-socket socket"),
        &expect![[r#"
        status 26
        -- stderr
        ec2vmm: socket socket is in use by another process
        hint: choose another path
    "#]],
    );
    drop(listener);
}

#[test]
fn two_machines_and_one_disk() {
    let host = Host::new("wait");
    let first = host.start("disk.raw --persist");
    let holder = format!("process {} (ec2vmm)", first.child.id());
    for words in ["disk.raw", "disk.raw --read-only", "disk.raw --persist"] {
        let output = host.run(words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(25), "{said}");
        assert!(said.contains(&holder), "{said}");
    }
    // The lock is the machine's: it lasts while the process that took it only waits.
    first.signal(rustix::process::Signal::TERM);
    first.ends(&expect![[r#"
        status 143
        -- stdout
        released
    "#]]);
    std::fs::remove_file(host.path("config.json")).unwrap();
    let second = host.start("disk.raw");
    std::fs::remove_file(host.path("config.json")).unwrap();
    let third = host.start("disk.raw --read-only");
    for running in [second, third] {
        running.signal(rustix::process::Signal::TERM);
        assert_eq!(running.child.wait_with_output().unwrap().status.code(), Some(143));
    }
}

#[test]
fn everything_has_json_too() {
    let host = Host::new("");
    host.check(&mut host.run("none.raw --json"), &expect![[r#"
        status 10
        -- stdout
        {"event":"ended","us":N,"exit":{"failed":"no_such_image"},"failure":{"kind":"no_such_image","message":"none.raw: no such file","hint":"check the name; `scripts/build-image debian-12` makes an image to start with"}}
        -- stderr
        ec2vmm: none.raw: no such file
        hint: check the name; `scripts/build-image debian-12` makes an image to start with
    "#]]);
}

#[test]
fn image_inspect() {
    let host = Host::new("");
    let inspect = |name: &str| -> Command { host.command(&format!("image inspect {name}")) };
    host.check(
        &mut inspect("none.raw"),
        &expect![[r#"
        status 10
        -- stderr
        ec2vmm: none.raw: no such file
        hint: check the name; `scripts/build-image debian-12` makes an image to start with
    "#]],
    );
    host.check(
        &mut inspect("disk.raw"),
        &expect![[r#"
        status 11
        -- stderr
        ec2vmm: disk.raw: neither a partition table nor a known file system is on the disk
        hint: a raw or qcow2 disk image is wanted; `qemu-img convert -O qcow2 OLD NEW` makes one of others
    "#]],
    );
    File::create(host.path("short")).unwrap().set_len(100).unwrap();
    host.check(
        &mut inspect("short"),
        &expect![[r#"
        status 11
        -- stderr
        ec2vmm: short: layer 0 holds only 100 bytes: not a disk
        hint: a raw or qcow2 disk image is wanted; `qemu-img convert -O qcow2 OLD NEW` makes one of others
    "#]],
    );
}

/// The start of a qcow2 file, version 2, that lies on another.
fn qcow2_on(below: &str) -> Vec<u8> {
    let mut file = vec![0; 4 << 16];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(8, &0x200u64.to_be_bytes()); // backing file name
    put(16, &u32::try_from(below.len()).unwrap().to_be_bytes());
    put(20, &16u32.to_be_bytes()); // 64 KiB clusters
    put(24, &(1u64 << 20).to_be_bytes());
    put(36, &1u32.to_be_bytes()); // one L1 entry
    put(40, &(3u64 << 16).to_be_bytes());
    put(48, &(1u64 << 16).to_be_bytes()); // reference count table
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(104, &0xe279_2acau32.to_be_bytes()); // format of the backing file
    put(108, &5u32.to_be_bytes());
    put(112, b"qcow2");
    put(0x200, below.as_bytes());
    file
}
