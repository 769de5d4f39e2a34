//! Finding what a disk boots.

use ec2vmm_image::{Disk, Format, find_boot, inspect};

use crate::tools::{UUID, Workshop, kernel, open, whole_kernel};

const RELEASE: &str = "6.1.0-18-cloud-amd64";

/// The configuration that `grub-mkconfig` writes on Debian, cut down to what differs between systems.
fn grub_cfg() -> String {
    format!(
        "set default=\"0\"\n\
         menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-{UUID}' {{\n\
         \tsearch --no-floppy --fs-uuid --set=root {UUID}\n\
         \tlinux\t/boot/vmlinuz-{RELEASE} root=UUID={UUID} ro console=tty0 console=ttyS0,115200 \n\
         \tinitrd\t/boot/initrd.img-{RELEASE}\n}}\n"
    )
}

fn debian() -> Workshop {
    let workshop = Workshop::new();
    workshop
        .file("/boot/grub/grub.cfg", grub_cfg())
        .file(&format!("/boot/vmlinuz-{RELEASE}"), kernel(RELEASE, 300_000))
        .file(&format!("/boot/initrd.img-{RELEASE}"), vec![7; 70_001]);
    workshop
}

fn check_boots(disk: &Disk, device: &str) {
    let boot = find_boot(disk).unwrap();
    assert_eq!(boot.entry.title, "Debian GNU/Linux");
    assert_eq!(boot.entry.source, format!("({device})/boot/grub/grub.cfg"));
    assert_eq!(boot.entry.kernel, format!("({device})/boot/vmlinuz-{RELEASE}"));
    let cmdline =
        format!("BOOT_IMAGE=/boot/vmlinuz-{RELEASE} root=UUID={UUID} ro console=tty0 console=ttyS0,115200");
    assert_eq!(boot.entry.cmdline, cmdline);
    assert_eq!(boot.kernel.release.as_deref(), Some(RELEASE));
    assert_eq!(whole_kernel(&boot), kernel(RELEASE, 300_000));
    let mut initrd = Vec::new();
    boot.read_initrd(&mut |piece| {
        initrd.extend_from_slice(piece);
        Ok(())
    })
    .unwrap();
    assert_eq!(initrd.len() as u64, boot.initrd_size());
    assert_eq!(initrd, [vec![7; 70_001], vec![0; 3]].concat());
}

#[test]
fn a_bare_file_system_boots() {
    let workshop = debian();
    check_boots(&open(&workshop.ext4("disk.raw", 16, &[]), Format::Raw, false), "hd0");
}

#[test]
fn a_gpt_disk_boots_raw_and_qcow2() {
    let workshop = debian();
    let raw = workshop.gpt("disk.raw", &workshop.ext4("fs", 16, &[]));
    check_boots(&open(&raw, Format::Raw, false), "hd0,gpt1");
    for options in [&["-c"][..], &["-o", "compat=0.10"], &["-o", "cluster_size=4096"], &[]] {
        let qcow2 = workshop.qcow2("disk.qcow2", &raw, options);
        check_boots(&open(&qcow2, Format::Qcow2, false), "hd0,gpt1");
    }
}

#[test]
fn inspection_names_what_is_there() {
    let workshop = debian();
    let raw = workshop.gpt("disk.raw", &workshop.ext4("fs", 16, &[]));
    let inspection = inspect(&open(&raw, Format::Raw, false)).unwrap();
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(json["table"], "gpt");
    assert_eq!(json["partitions"][0]["filesystem"]["uuid"], UUID);
    assert_eq!(json["partitions"][0]["filesystem"]["label"], "rootfs");
    assert_eq!(json["partitions"][0]["name"], "root");
    assert_eq!(json["boot"]["kernel"]["release"], RELEASE);
    assert_eq!(json["boot_error"], serde_json::Value::Null);
}
