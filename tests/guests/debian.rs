//! The debian-12 image, which is as Debian's own: cloud-init, systemd, grub's menu.

use std::{fs, path::Path, process::Command};

use ec2vmm_vmm_api::Event;

use crate::{
    hard_kills::run,
    machine::{Machine, Plan},
    place,
};

#[test]
#[ignore = "boots Linux"]
fn raw_image() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("extra");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let plan = plan(&place::image("debian-12.raw"), folder.path());
    let mut machine = plan.arg("--disk").arg(format!("{},serial=extra", disk.display())).start();
    log_in(&mut machine);
    assert_eq!(machine.sh("nproc"), "2");
    assert_eq!(machine.sh("hostname"), "deb");
    assert_eq!(machine.sh("cat /run/user-data-ran"), "by user data");
    assert!(machine.sh("cat /home/debian/.ssh/authorized_keys").contains(KEY));
    assert_eq!(machine.sh("readlink -f /dev/disk/by-id/virtio-extra"), "/dev/vdb");
    assert_eq!(machine.sh("findmnt -no FSTYPE /"), "ext4");

    machine.last_words("systemctl poweroff");
    assert_eq!(machine.end(), 0);
}

#[test]
#[ignore = "boots Linux"]
fn qcow2_image_and_a_kernel_installed_inside() {
    let folder = tempfile::tempdir().unwrap();
    let overlay = folder.path().join("overlay.qcow2");
    let image = place::image("debian-12.qcow2");
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(fs::canonicalize(image).unwrap())
        .arg(&overlay));
    let mut machine = plan(&overlay, folder.path()).arg("--persist").start();
    machine.wait_for_event(|event| matches!(event, Event::Running { .. }).then_some(()));
    log_in(&mut machine);
    assert_eq!(machine.sh("nproc"), "2");
    assert!(machine.sh("cat /home/debian/.ssh/authorized_keys").contains(KEY));
    machine.sh(
        "cd /boot && for f in vmlinuz initrd.img config; do cp $f-$(uname -r) $f-999.1-cloud-amd64; done",
    );
    machine.sh("update-grub");
    let process = machine.process();
    machine.last_words("systemctl reboot");
    let loaded = machine.wait_for_event(|event| match event {
        Event::Loaded { booted, .. } => Some(booted.clone()),
        _ => None,
    });
    assert!(loaded.kernel.ends_with("/boot/vmlinuz-999.1-cloud-amd64"), "{loaded:?}");
    log_in(&mut machine);
    assert_eq!(machine.process(), process);
    assert_eq!(machine.view().reboots, 1);
    assert!(machine.sh("cat /proc/cmdline").starts_with("BOOT_IMAGE=/boot/vmlinuz-999.1-cloud-amd64"));
    machine.last_words("systemctl poweroff");
    assert_eq!(machine.end(), 0);
    run(Command::new("qemu-img").arg("check").arg(&overlay));
}

fn plan(image: &Path, folder: &Path) -> Plan {
    fs::write(folder.join("key.pub"), format!("{KEY} somebody\n")).unwrap();
    fs::write(folder.join("user-data"), USER_DATA).unwrap();
    let plan = Plan::boot(image).args(["--type", "t3.medium", "--hostname", "deb", "--key"]);
    plan.arg(folder.join("key.pub")).arg("--user-data").arg(folder.join("user-data"))
}

/// From power-on to a quiet root shell.
fn log_in(machine: &mut Machine) {
    machine.wait_for("deb login: ");
    machine.type_line("tester");
    machine.wait_for("Password: ");
    machine.type_line("of the test");
    machine.wait_for("tester@deb:~$ ");
    machine.type_line("sudo -i");
    machine.quiet_shell();
    // It writes to the console until it has done all, in the middle of what others write.
    machine.try_sh("cloud-init status --wait >/dev/null");
}

/// The account is made before there is a login prompt, which `chpasswd` is not.
const USER_DATA: &str = "\
#cloud-config
users:
  - default
  - name: tester
    plain_text_passwd: of the test
    lock_passwd: false
    shell: /bin/bash
    sudo: ALL=(ALL) NOPASSWD:ALL
runcmd:
  - echo by user data >/run/user-data-ran
";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTPzd2t27+t0DEHBPw7iOD23TUiYLio";
