//! Disks that are broken, strange or hostile.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use ec2vmm_image::{BootError, Disk, ErrorKind, Format, Layer, find_boot, inspect};
use proptest::prelude::*;

use crate::tools::{PARTITION_START, Workshop, kernel, open, run, whole_kernel, with_causes};

const GRUB_CFG: &str = "menuentry 'Linux' {\nlinux /boot/vmlinuz ro\n}\n";

fn bootable() -> Workshop {
    let workshop = Workshop::new();
    workshop.file("/boot/grub/grub.cfg", GRUB_CFG).file("/boot/vmlinuz", kernel("6.1.0-1", 20_000));
    workshop
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn boot(path: &Path) -> Result<ec2vmm_image::Boot, BootError> {
    find_boot(&open(path, Format::Raw, false))
}

#[track_caller]
fn check_refused(path: &Path, kind: ErrorKind, message: &str) {
    let error = boot(path).err().expect("an error");
    let line = with_causes(&error);
    assert_eq!(error.kind(), kind, "{line}");
    assert!(line.contains(message), "{line}");
}

#[test]
fn a_broken_gpt_is_read_from_its_other_copy_or_refused() {
    let workshop = bootable();
    let disk = workshop.gpt("disk.raw", &workshop.ext4("fs", 8, &[]));
    overwrite(&disk, 512 + 60, &[0xff; 4]);
    let inspection = inspect(&open(&disk, Format::Raw, false)).unwrap();
    assert!(inspection.boot.is_some(), "{inspection:?}");
    assert!(inspection.notes[0].contains("wrong checksum of the header"), "{:?}", inspection.notes);
    let len = disk.metadata().unwrap().len();
    overwrite(&disk, len - 512, &[0; 512]);
    check_refused(&disk, ErrorKind::BrokenPartitionTable, "both copies of the GPT are broken");

    let disk = workshop.gpt("entries.raw", &workshop.path("fs"));
    overwrite(&disk, 1024 + 32, &[7; 8]);
    let inspection = inspect(&open(&disk, Format::Raw, false)).unwrap();
    assert!(inspection.notes[0].contains("wrong checksum of the entries"), "{:?}", inspection.notes);
}

#[test]
fn a_truncated_disk_is_refused() {
    let workshop = bootable();
    let disk = workshop.gpt("disk.raw", &workshop.ext4("fs", 8, &[]));
    File::options().write(true).open(&disk).unwrap().set_len(4 << 20).unwrap();
    check_refused(&disk, ErrorKind::BrokenPartitionTable, "reaches beyond the disk's 4194304 bytes");
    File::options().write(true).open(workshop.path("fs")).unwrap().set_len(4 << 20).unwrap();
    check_refused(&workshop.path("fs"), ErrorKind::BrokenFileSystem, "has 8388608 bytes");
}

#[test]
fn logical_partitions_are_found_and_their_chain_must_end() {
    let workshop = bootable();
    let filesystem = workshop.ext4("fs", 8, &[]);
    let script = "label: dos\nstart=1, size=20000, type=5\nstart=2048, size=16384\n";
    let disk = workshop.partitioned("disk.raw", &filesystem, script);
    assert_eq!(boot(&disk).unwrap().entry.source, "(hd0,msdos5)/boot/grub/grub.cfg");
    let inspection = inspect(&open(&disk, Format::Raw, false)).unwrap();
    assert_eq!(
        inspection.partitions.iter().map(|volume| volume.partition.number).collect::<Vec<_>>(),
        [1, 5]
    );
    // The second entry of the first link leads back to itself.
    let link = 512 + 446 + 16;
    overwrite(&disk, link, &[0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    check_refused(&disk, ErrorKind::BrokenPartitionTable, "loops at sector 1");
    overwrite(&disk, link, &[0, 0, 0, 0, 5, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    check_refused(&disk, ErrorKind::BrokenPartitionTable, "broken at sector 4294967296");
}

#[test]
fn a_broken_file_system_is_refused() {
    let workshop = bootable();
    let disk = workshop.gpt("disk.raw", &workshop.ext4("fs", 8, &["-O", "metadata_csum"]));
    overwrite(&disk, PARTITION_START + 1024 + 4, &[0xff; 3]);
    check_refused(&disk, ErrorKind::BrokenFileSystem, "wrong checksum of the superblock");
    let disk = workshop.gpt("tables.raw", &workshop.path("fs"));
    let filesystem = workshop.path("fs");
    let printed = run("dumpe2fs", &[filesystem.to_str().unwrap()], "");
    let table = printed.lines().find_map(|line| line.trim().strip_prefix("Inode table at ")).unwrap();
    let block: u64 = table.split('-').next().unwrap().parse().unwrap();
    overwrite(&disk, PARTITION_START + block * 1024, &[0xff; 4096]);
    check_refused(&disk, ErrorKind::BrokenFileSystem, "wrong checksum of inode 2");
}

#[test]
fn a_disk_without_boot_entry_says_where_it_was_looked_for() {
    let workshop = Workshop::new();
    workshop.file("/boot/vmlinuz-6.1.0-1", kernel("6.1.0-1", 20_000)).file("/boot/initrd.img-6.1.0-1", "x");
    let disk = workshop.ext4("data", 8, &[]);
    check_refused(&disk, ErrorKind::NoKernel, "on the disk (ext4) in /boot/grub, /boot/grub2, /grub, /grub2");
    let fat = workshop.path("fat");
    File::create(&fat).unwrap().set_len(8 << 20).unwrap();
    run("mkfs.vfat", &["-n", "DATA", fat.to_str().unwrap()], "");
    check_refused(&fat, ErrorKind::NoKernel, "not on the disk (vfat): only ext4 can be read");
    let zeros = workshop.path("zeros");
    File::create(&zeros).unwrap().set_len(1 << 20).unwrap();
    check_refused(&zeros, ErrorKind::NotADisk, "neither a partition table nor a known file system");
}

#[test]
fn debians_links_are_followed_to_the_newest_kernel() {
    let workshop = Workshop::new();
    workshop
        .file("/boot/vmlinuz-6.1.0-1", kernel("6.1.0-1", 20_000))
        .file("/boot/initrd.img-6.1.0-1", "initrd")
        .link("/vmlinuz", "boot/vmlinuz-6.1.0-1")
        .link("/initrd.img", "/boot/../boot/./initrd.img-6.1.0-1");
    let boot = boot(&workshop.ext4("disk", 8, &[])).unwrap();
    assert_eq!(boot.kernel.release.as_deref(), Some("6.1.0-1"));
    assert_eq!(boot.entry.cmdline, format!("root=UUID={} ro console=ttyS0", crate::tools::UUID));
}

#[test]
fn kernels_that_cannot_start_here_are_refused() {
    let arm = [vec![0; 0x38], b"ARM\x64".to_vec(), vec![0; 200]].concat();
    let mut riscv = [b"MZ".to_vec(), vec![0; 0x36], b"RSC\x05".to_vec(), vec![0; 200]].concat();
    riscv[0x30..0x38].copy_from_slice(b"RISCV\0\0\0");
    let elf = |class: u8, machine: u16| {
        let mut elf = [b"\x7fELF".to_vec(), vec![class, 1, 1, 0], vec![0; 100]].concat();
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf
    };
    let mut narrow = kernel("6.1.0", 20_000);
    narrow[0x236] = 0;
    let mut old = kernel("6.1.0", 20_000);
    old[0x206..0x208].copy_from_slice(&0x0205_u16.to_le_bytes());
    for (contents, message) in [
        (arm, "the kernel is for arm64, this machine is x86-64"),
        (riscv, "the kernel is for RISC-V"),
        (elf(2, 183), "the kernel is for arm64"),
        (elf(1, 3), "the kernel is for 32-bit x86"),
        (narrow, "the kernel is for 32-bit x86"),
        (old, "too old: boot protocol 2.05"),
        (b"\x1f\x8b\x08 packed".to_vec(), "compressed with gzip"),
        (b"#!/bin/sh\n".to_vec(), "the file is no kernel"),
        (Vec::new(), "the file is no kernel"),
    ] {
        let workshop = Workshop::new();
        workshop.file("/boot/grub/grub.cfg", GRUB_CFG).file("/boot/vmlinuz", contents);
        check_refused(&workshop.ext4("disk", 8, &[]), ErrorKind::WrongKernel, message);
    }
    let workshop = Workshop::new();
    workshop.file("/boot/grub/grub.cfg", GRUB_CFG).file("/boot/vmlinuz", elf(2, 62));
    assert!(boot(&workshop.ext4("disk", 8, &[])).is_ok());
}

#[test]
fn a_missing_kernel_and_a_broken_menu_are_named() {
    let workshop = Workshop::new();
    workshop.file("/boot/grub/grub.cfg", GRUB_CFG);
    check_refused(
        &workshop.ext4("disk", 8, &[]),
        ErrorKind::NoKernel,
        "(hd0)/boot/grub/grub.cfg boots (hd0)/boot/vmlinuz, which is not there",
    );
    workshop.file("/boot/grub/grub.cfg", "menuentry 'x {");
    check_refused(&workshop.ext4("disk", 8, &[]), ErrorKind::NoKernel, "line 1: a quote without an end");
}

#[test]
fn old_file_systems_large_folders_and_holes_are_read() {
    let workshop = bootable();
    let mut sparse = kernel("6.1.0-1", 9_000);
    sparse.resize(3 << 20, 0);
    sparse.extend([0x42; 5000]);
    workshop.file("/boot/vmlinuz", &sparse);
    for index in 0..600 {
        workshop.file(&format!("/boot/a-name-that-fills-the-folder-so-that-it-gets-an-index-{index}"), "");
    }
    for options in [
        &["-b", "1024", "-O", "^extent,^64bit,^metadata_csum", "-I", "128"][..],
        &["-b", "2048", "-O", "meta_bg,^resize_inode,metadata_csum"],
        &["-b", "4096", "-O", "dir_index,metadata_csum,64bit"],
    ] {
        let disk = workshop.ext4("disk", 64, options);
        run("e2fsck", &["-fyD", disk.to_str().unwrap()], "");
        let boot = boot(&disk).unwrap_or_else(|error| panic!("{options:?}: {}", with_causes(&error)));
        assert!(whole_kernel(&boot) == sparse, "{options:?}");
        // Also from places in runs and in holes, and beyond the end.
        let mut reader = boot.kernel().unwrap();
        for at in (0..sparse.len() + 9000).step_by(4999) {
            reader.seek(SeekFrom::Start(at as u64)).unwrap();
            let mut bytes = [0; 7];
            let len = reader.read(&mut bytes).unwrap();
            let wanted = sparse.get(at..).unwrap_or_default();
            assert!(len > 0 || wanted.is_empty());
            assert_eq!(bytes[..len], wanted[..len], "{options:?}: byte {at}");
        }
    }
}

/// A menu that asks for files for ever, in a folder that is long and empty.
#[test]
fn a_disk_that_keeps_us_reading_is_given_up() {
    let workshop = Workshop::new();
    workshop.file("/boot/grub/grub.cfg", "while true; do if [ -e /folder/nothing ]; then true; fi; done");
    let mut script = "cd folder\n".to_owned();
    for index in 0..600 {
        let name = format!("{index:0240}");
        workshop.file(&format!("/folder/{name}"), "");
        script.push_str(&format!("rm {name}\n"));
    }
    let disk = workshop.ext4("disk", 32, &["-b", "4096", "-O", "^dir_index"]);
    let file = workshop.path("script");
    std::fs::write(&file, script).unwrap();
    run("debugfs", &["-w", "-f", file.to_str().unwrap(), disk.to_str().unwrap()], "");
    check_refused(&disk, ErrorKind::BrokenFileSystem, "gave up after reading 4096 MiB");
}

/// Disks that stay as they are, for tests that change copies.
static BASES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let workshop = bootable();
    let small = ["-b", "1024", "-O", "^has_journal,^metadata_csum,^resize_inode", "-N", "64"];
    let filesystem = workshop.ext4("fs", 1, &small);
    let disk = workshop.gpt("disk.raw", &filesystem);
    let qcow2 = workshop.qcow2("disk.qcow2", &filesystem, &["-o", "cluster_size=512"]);
    [filesystem, disk, qcow2].iter().map(|path: &PathBuf| std::fs::read(path).unwrap()).collect()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever bytes change and wherever the file ends, the answer is a value.
    #[test]
    fn changed_disks_never_panic(
        base in 0..3_usize,
        patches in proptest::collection::vec((any::<prop::sample::Index>(), 0..80_usize, any::<[u8; 4]>()), 0..6),
        keep in prop_oneof![3 => Just(1.0), 1 => 0.0..1.0_f64],
    ) {
        let mut bytes = BASES[base].clone();
        for (place, fine, patch) in patches {
            // Half of the changes hit the first blocks, where the tables are.
            let range = if fine % 2 == 0 { bytes.len() } else { 16 * 1024 };
            let at = place.index(range - 4);
            bytes[at..at + 4].copy_from_slice(&patch);
        }
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let format = if base == 2 { Format::Qcow2 } else { Format::Raw };
        if let Ok(disk) = Disk::open(vec![Layer { file, format }], false) {
            let _ = inspect(&disk);
            if let Ok(boot) = find_boot(&disk) {
                let _ = boot.kernel().map(|mut kernel| kernel.read_to_end(&mut Vec::new()));
                let _ = boot.read_initrd(&mut |_| Ok(()));
            }
        }
    }
}
