//! Reading and writing disks of each format.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use ec2vmm_image::{Disk, Format, Layer, create_overlay};
use proptest::prelude::*;
use vm_memory::VolatileSlice;

use crate::tools::{Workshop, open, run};

const SIZE: usize = 1 << 20;

/// An empty disk of [`SIZE`] bytes in each way a disk can be held, with how `qemu-img` checks it.
fn each_format(workshop: &Workshop) -> Vec<(Disk, Option<std::path::PathBuf>)> {
    let raw = workshop.path("empty.raw");
    File::create(&raw).unwrap().set_len(SIZE as u64).unwrap();
    let mut disks = vec![(open(&raw, Format::Raw, true), None)];
    for (name, options) in [
        ("new", &["-o", "cluster_size=4096"][..]),
        ("old", &["-o", "compat=0.10"]),
        ("small", &["-o", "cluster_size=512"]),
    ] {
        let path = workshop.qcow2(&format!("{name}.qcow2"), &raw, options);
        disks.push((open(&path, Format::Qcow2, true), Some(path)));
    }
    let base = workshop.path("base.raw");
    std::fs::write(&base, vec![0; SIZE]).unwrap();
    let overlay = workshop.path("overlay.qcow2");
    let file = || File::options().read(true).write(true).create(true).truncate(false).open(&overlay).unwrap();
    create_overlay(file(), SIZE as u64).unwrap();
    let base = Layer { file: File::open(&base).unwrap(), format: Format::Raw };
    let top = Layer { file: file(), format: Format::Qcow2 };
    disks.push((Disk::open(vec![top, base], true).unwrap(), Some(overlay)));
    disks
}

fn check_clean(path: &Path) {
    run("qemu-img", &["check", "-q", "-f", "qcow2", path.to_str().unwrap()], "");
}

#[derive(Clone, Debug)]
enum Act {
    Write(usize, usize, u8),
    Zero(usize, usize, bool),
    Discard(usize, usize),
    Flush,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let range =
        (0..SIZE / 512, 1..200usize).prop_map(|(at, len)| (at * 512, (len * 512).min(SIZE - at * 512)));
    let act = prop_oneof![
        4 => (range.clone(), any::<u8>()).prop_map(|((at, len), byte)| Act::Write(at, len, byte)),
        2 => (range.clone(), any::<bool>()).prop_map(|((at, len), unmap)| Act::Zero(at, len, unmap)),
        1 => range.prop_map(|(at, len)| Act::Discard(at, len)),
        1 => Just(Act::Flush),
    ];
    proptest::collection::vec(act, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Every format holds what a row of bytes would, and stays a file that `qemu-img` accepts.
    #[test]
    fn every_format_is_a_row_of_bytes(acts in acts()) {
        let workshop = Workshop::new();
        for (disk, path) in each_format(&workshop) {
            let mut model = vec![0; SIZE];
            for act in &acts {
                match *act {
                    Act::Write(at, len, byte) => {
                        disk.write_at(&vec![byte; len], at as u64).unwrap();
                        model[at..at + len].fill(byte);
                    }
                    Act::Zero(at, len, unmap) => {
                        disk.write_zeroes(at as u64, len as u64, unmap).unwrap();
                        model[at..at + len].fill(0);
                    }
                    Act::Discard(at, len) => {
                        disk.discard(at as u64, len as u64).unwrap();
                        // What is read now is anybody's guess; so say what it is.
                        disk.write_at(&vec![0xdd; len], at as u64).unwrap();
                        model[at..at + len].fill(0xdd);
                    }
                    Act::Flush => disk.flush().unwrap(),
                }
            }
            let mut seen = vec![0; SIZE];
            disk.read_at(&mut seen, 0).unwrap();
            prop_assert!(seen == model);
            disk.flush().unwrap();
            if let Some(path) = path {
                check_clean(&path);
            }
        }
    }
}

#[test]
fn what_was_flushed_is_in_the_file() {
    let workshop = Workshop::new();
    for (disk, path) in each_format(&workshop) {
        disk.write_at(&[0x77; 8192], 4096).unwrap();
        disk.flush().unwrap();
        // The writer goes away without a chance to tidy up, as a killed process does.
        std::mem::forget(disk);
        let Some(path) = path else { continue };
        check_clean(&path);
        let file = File::open(&path).unwrap();
        let again = Disk::open(vec![Layer { file, format: Format::Qcow2 }], false).unwrap();
        let mut bytes = [0; 8192];
        again.read_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, [0x77; 8192]);
    }
}

#[test]
fn an_overlay_leaves_what_lies_beneath() {
    let workshop = Workshop::new();
    let raw = workshop.path("base.raw");
    std::fs::write(&raw, vec![1; SIZE]).unwrap();
    let base = workshop.qcow2("base.qcow2", &raw, &["-c"]);
    let before = std::fs::read(&base).unwrap();
    let overlay = tempfile::tempfile().unwrap();
    create_overlay(overlay.try_clone().unwrap(), SIZE as u64).unwrap();
    let layers = vec![
        Layer { file: overlay, format: Format::Qcow2 },
        Layer { file: File::open(&base).unwrap(), format: Format::Qcow2 },
    ];
    let disk = Disk::open(layers, true).unwrap();
    disk.write_at(&[2; 512], 512).unwrap();
    disk.discard(8192, 65536).unwrap();
    disk.flush().unwrap();
    let mut bytes = [0; 1536];
    disk.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes.as_chunks::<512>().0, [[1; 512], [2; 512], [1; 512]]);
    assert!(std::fs::read(&base).unwrap() == before);
}

#[test]
fn room_that_is_kept_in_advance_is_no_truncation() {
    let workshop = Workshop::new();
    for mode in ["off", "metadata", "falloc", "full"] {
        let path = workshop.path("disk.qcow2");
        let options = format!("preallocation={mode}");
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, path.to_str().unwrap(), "8M"], "");
        let disk = open(&path, Format::Qcow2, true);
        disk.write_at(&[8; 512], 7 << 20).unwrap();
        disk.discard(0, 8 << 20).unwrap();
        disk.flush().unwrap();
        check_clean(&path);
    }
}

#[test]
fn a_file_that_ends_within_a_sector_is_extended() {
    let workshop = Workshop::new();
    let path = workshop.path("odd.raw");
    std::fs::write(&path, [5; 1000]).unwrap();
    let disk = open(&path, Format::Raw, true);
    assert_eq!(disk.size(), 1024);
    let mut bytes = [9; 512];
    disk.read_at(&mut bytes, 512).unwrap();
    assert_eq!(bytes[..488], [5; 488]);
    assert_eq!(bytes[488..], [0; 24]);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1000);
    disk.write_at(&[6; 512], 512).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1024);
    disk.read_at(&mut bytes, 512).unwrap();
    assert_eq!(bytes, [6; 512]);
}

#[test]
fn what_is_out_of_range_or_read_only_is_refused() {
    let workshop = Workshop::new();
    let path = workshop.path("disk.raw");
    std::fs::write(&path, [5; 1024]).unwrap();
    let disk = open(&path, Format::Raw, false);
    assert_eq!(disk.read_at(&mut [0; 512], 1024).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(disk.read_at(&mut [0; 512], u64::MAX - 100).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(disk.write_at(&[0; 512], 0).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(disk.discard(0, 512).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    let disk = open(&path, Format::Raw, true);
    assert_eq!(disk.write_at(&[0; 512], 1024).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(disk.write_zeroes(512, u64::MAX, true).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn guest_memory_is_read_and_written_in_pieces() {
    let workshop = Workshop::new();
    for (disk, _) in each_format(&workshop) {
        let (mut first, mut second) = ([1; 1000], [2; 24]);
        let slices = [VolatileSlice::from(first.as_mut_slice()), VolatileSlice::from(second.as_mut_slice())];
        disk.write_vectored_at(&slices, 2048).unwrap();
        let (mut head, mut tail) = ([0; 512], [0; 512]);
        let slices = [VolatileSlice::from(head.as_mut_slice()), VolatileSlice::from(tail.as_mut_slice())];
        disk.read_vectored_at(&slices, 2048).unwrap();
        assert_eq!(head, [1; 512]);
        assert_eq!(tail, *[vec![1; 488], vec![2; 24]].concat());
    }
}

#[test]
fn a_scratch_file_is_read_back_without_being_flushed() {
    let file = tempfile::tempfile().unwrap();
    create_overlay(file.try_clone().unwrap(), SIZE as u64).unwrap();
    let disk = Disk::open(vec![Layer { file, format: Format::Qcow2 }], true).unwrap();
    disk.write_at(&[3; 4096], 8192).unwrap();
    disk.flush().unwrap();
    let mut bytes = [0; 4096];
    disk.read_at(&mut bytes, 8192).unwrap();
    assert_eq!(bytes, [3; 4096]);
}

/// Writers and discarders of their own parts of one disk, at the same time.
#[test]
fn threads_share_a_disk() {
    let workshop = Workshop::new();
    for (disk, path) in each_format(&workshop) {
        std::thread::scope(|scope| {
            for part in 0..4_u8 {
                let disk = disk.clone();
                scope.spawn(move || {
                    for round in 0..32_u64 {
                        let at = (round * 4 + u64::from(part)) * 4096;
                        disk.write_at(&[part + 1; 4096], at).unwrap();
                        let mut bytes = [0; 4096];
                        disk.read_at(&mut bytes, at).unwrap();
                        assert_eq!(bytes, [part + 1; 4096]);
                        match round % 4 {
                            0 => disk.write_zeroes(at, 4096, true).unwrap(),
                            1 => disk.discard(at, 512).unwrap(),
                            2 => disk.flush().unwrap(),
                            _ => {}
                        }
                    }
                });
            }
        });
        disk.flush().unwrap();
        if let Some(path) = path {
            check_clean(&path);
        }
    }
}
