//! Images that cannot be booted: one line that says what and where, a hint, and a status of their own.
//! No Linux is booted, so that any `/dev/kvm` will do.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use ec2vmm_vmm_api::FailureKind;

use crate::{hard_kills::run, place};

#[test]
#[ignore = "needs the built command"]
fn each_has_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let arm = [b"MZ".as_slice(), &[0; 0x36], b"ARM\x64", &[0; 0x1000]].concat();
    let zeroes = disk(folder, "zeroes.raw");
    let cases = [
        (zeroes.clone(), FailureKind::NotADisk, "neither a partition table nor a known file system"),
        (broken_gpt(folder), FailureKind::BrokenPartitionTable, "both copies of the GPT are broken"),
        (broken_ext4(folder), FailureKind::BrokenFileSystem, "broken ext4 file system"),
        (ext4(folder, "empty", None), FailureKind::NoKernel, "looked on the disk (ext4) in /boot/grub"),
        (ext4(folder, "missing", Some(&[])), FailureKind::NoKernel, "/boot/vmlinuz, which is not there"),
        (ext4(folder, "arm", Some(&arm)), FailureKind::WrongKernel, "the kernel is for arm64"),
        (truncated_qcow2(folder, &zeroes), FailureKind::BrokenQcow2, "truncated"),
    ];
    for (image, kind, text) in cases {
        let output = Command::new(place::program("ec2vmm"))
            .args(["run", "--emulated-kvm"])
            .arg(&image)
            .env("TMPDIR", folder)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(kind.code().into()), "{said}");
        assert!(said.contains(text) && said.contains("\nhint: "), "{text}: {said}");
    }
}

fn disk(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    path
}

fn broken_gpt(folder: &Path) -> PathBuf {
    let path = disk(folder, "gpt.raw");
    run(Command::new("sh").args(["-c", "echo 'label: gpt' | sfdisk -q \"$0\""]).arg(&path));
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"XXXXXXXX", 520).unwrap();
    file.write_all_at(&[0; 512], (64 << 20) - 512).unwrap();
    path
}

fn broken_ext4(folder: &Path) -> PathBuf {
    let path = ext4(folder, "broken", Some(&[]));
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0xa5; 900 << 10], 4 << 10).unwrap();
    path
}

/// A file system, with a menu that boots `kernel` if there is one: nothing is written where it is empty.
fn ext4(folder: &Path, name: &str, kernel: Option<&[u8]>) -> PathBuf {
    let tree = folder.join(name);
    fs::create_dir_all(tree.join("boot/grub")).unwrap();
    if let Some(kernel) = kernel {
        let menu = "menuentry x {\n linux /boot/vmlinuz root=/dev/vda\n}\n";
        fs::write(tree.join("boot/grub/grub.cfg"), menu).unwrap();
        if !kernel.is_empty() {
            fs::write(tree.join("boot/vmlinuz"), kernel).unwrap();
        }
    }
    let path = disk(folder, &format!("{name}.raw"));
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&path));
    path
}

fn truncated_qcow2(folder: &Path, disk: &Path) -> PathBuf {
    let path = folder.join("short.qcow2");
    run(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(disk).arg(&path));
    File::options().write(true).open(&path).unwrap().set_len(70_000).unwrap();
    path
}
