//! Opening files by name: chains of backing files, and all that is refused.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ec2vmm_image::{Disk, Error, ErrorKind, Format, Layer, open_chain};

use crate::tools::{Workshop, run, with_causes};

fn qemu_img(workshop: &Workshop, words: &str) {
    let folder = workshop.dir.path().to_str().unwrap();
    run("sh", &["-c", &format!("cd {folder} && qemu-img {words}")], "");
}

/// Opens the chain and the disk, as the command line does.
fn open(path: &Path, format: Option<Format>) -> Result<Disk, Error> {
    let layers = open_chain(path, format, false)?;
    Ok(Disk::open(layers.into_iter().map(|(_, layer)| layer).collect(), false)?)
}

#[track_caller]
fn check_refused(path: &Path, format: Option<Format>, kind: ErrorKind, message: &str) -> Option<String> {
    let error = open(path, format).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    let line = with_causes(&error);
    assert!(line.contains(message), "{line}");
    error.hint()
}

#[test]
fn a_chain_is_followed_by_its_headers() {
    let workshop = Workshop::new();
    std::fs::create_dir(workshop.path("base")).unwrap();
    std::fs::write(workshop.path("base/root.raw"), vec![1; 1 << 20]).unwrap();
    qemu_img(&workshop, "create -q -f qcow2 -F raw -b root.raw base/middle.qcow2");
    qemu_img(&workshop, "create -q -f qcow2 -F qcow2 -b base/middle.qcow2 top.qcow2");
    let chain = open_chain(&workshop.path("top.qcow2"), None, false).unwrap();
    let names: Vec<_> = chain.iter().map(|(path, layer)| (path.clone(), layer.format)).collect();
    let expected = [
        (workshop.path("top.qcow2"), Format::Qcow2),
        (workshop.path("base/middle.qcow2"), Format::Qcow2),
        (workshop.path("base/root.raw"), Format::Raw),
    ];
    assert_eq!(names, expected);
    let disk = open(&workshop.path("top.qcow2"), None).unwrap();
    let mut bytes = [0; 512];
    disk.read_at(&mut bytes, (1 << 20) - 512).unwrap();
    assert_eq!(bytes, [1; 512]);
    assert_eq!(disk.layers().len(), 3);
}

#[test]
fn what_is_no_file_is_refused() {
    let workshop = Workshop::new();
    check_refused(&workshop.path("none"), None, ErrorKind::NotFound, "no such file");
    check_refused(workshop.dir.path(), None, ErrorKind::NotADisk, "a folder, not a disk");
    check_refused(Path::new("/dev/null"), None, ErrorKind::NotADisk, "a special file");
    File::create(workshop.path("empty")).unwrap();
    check_refused(&workshop.path("empty"), None, ErrorKind::NotADisk, "empty");
    std::fs::write(workshop.path("short"), b"hello").unwrap();
    check_refused(&workshop.path("short"), None, ErrorKind::NotADisk, "only 5 bytes");
    run("mkfifo", &[workshop.path("pipe").to_str().unwrap()], "");
    check_refused(&workshop.path("pipe"), None, ErrorKind::NotADisk, "a special file");
}

#[test]
fn cycles_and_endless_chains_are_refused() {
    let workshop = Workshop::new();
    qemu_img(&workshop, "create -q -f qcow2 a.qcow2 1M");
    qemu_img(&workshop, "create -q -f qcow2 -F qcow2 -b a.qcow2 b.qcow2");
    qemu_img(&workshop, "rebase -u -f qcow2 -F qcow2 -b b.qcow2 a.qcow2");
    check_refused(&workshop.path("b.qcow2"), None, ErrorKind::BrokenQcow2, "comes back to this file");
    qemu_img(&workshop, "rebase -u -f qcow2 -F qcow2 -b a.qcow2 a.qcow2");
    check_refused(&workshop.path("a.qcow2"), None, ErrorKind::BrokenQcow2, "comes back to this file");
    qemu_img(&workshop, "create -q -f qcow2 0.qcow2 1M");
    for index in 1..=16 {
        qemu_img(&workshop, &format!("create -q -f qcow2 -F qcow2 -b {}.qcow2 {index}.qcow2", index - 1));
    }
    assert_eq!(open(&workshop.path("15.qcow2"), None).unwrap().layers().len(), 16);
    check_refused(&workshop.path("16.qcow2"), None, ErrorKind::BrokenQcow2, "more than 16 files");
}

#[test]
fn backing_files_that_cannot_be_trusted_are_refused() {
    let workshop = Workshop::new();
    std::fs::write(workshop.path("base"), vec![0; 1 << 20]).unwrap();
    qemu_img(&workshop, "create -q -f qcow2 top.qcow2 1M");
    let refused = |words: &str, message: &str| {
        qemu_img(&workshop, &format!("rebase -u -f qcow2 {words} top.qcow2"));
        check_refused(&workshop.path("top.qcow2"), None, ErrorKind::BrokenQcow2, message)
    };
    refused("-F raw -b none", "none: no such file");
    refused("-F raw -b nbd:localhost:1", "is not a file");
    refused("-F raw -b 'json:{\"driver\":\"raw\"}'", "is not a file");
    refused("-F vmdk -b base", "in a format that is not supported");
    // No format is recorded: version 2 headers of old tools, or a header that was changed.
    qemu_img(&workshop, "rebase -u -f qcow2 -F raw -b base top.qcow2");
    let file = File::options().read(true).write(true).open(workshop.path("top.qcow2")).unwrap();
    let mut header = vec![0; 4096];
    file.read_exact_at(&mut header, 0).unwrap();
    let at = header.windows(4).position(|bytes| bytes == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    file.write_all_at(&[0x11; 4], at as u64).unwrap();
    let hint = check_refused(&workshop.path("top.qcow2"), None, ErrorKind::BrokenQcow2, "is not recorded");
    assert!(hint.unwrap().contains("qemu-img rebase -u -F"));
}

#[test]
fn broken_qcow2_files_are_refused() {
    let workshop = Workshop::new();
    let raw = workshop.path("disk.raw");
    std::fs::write(&raw, vec![9; 8 << 20]).unwrap();
    let image = workshop.qcow2("disk.qcow2", &raw, &[]);
    let whole = std::fs::read(&image).unwrap();
    let broken = workshop.path("broken.qcow2");
    let refused = |bytes: &[u8], message: &str| {
        std::fs::write(&broken, bytes).unwrap();
        check_refused(&broken, None, ErrorKind::BrokenQcow2, message)
    };
    let patched = |at: usize, patch: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        bytes
    };
    for len in [whole.len() / 2, whole.len() - 65536, 65536 * 4, 65536, 200, 100, 50] {
        refused(&whole[..len], "truncated");
    }
    refused(&whole[..4], "truncated");
    refused(&patched(0, b"QFI?"), "does not start with the qcow2 magic number");
    refused(&patched(4, &[0, 0, 0, 9]), "version 9 is not supported");
    refused(&patched(20, &[0, 0, 0, 40]), "cluster bits is 40");
    refused(&patched(24, &[0x7f; 8]), "size of the disk");
    refused(&patched(32, &[0, 0, 0, 1]), "encryption is not supported");
    refused(&patched(36, &[0xff; 4]), "L1 size");
    refused(&patched(36, &[0; 4]), "L1 size");
    refused(&patched(40, &[0, 0, 0, 0, 0, 0, 0, 1]), "L1 table offset");
    refused(&patched(56, &[0xff; 4]), "reference count table clusters");
    refused(&patched(60, &[0, 0, 0, 1]), "internal snapshots are not supported");
    let hint = refused(&patched(72, &[0, 0, 0, 0, 0, 0, 0, 1]), "dirty");
    assert!(hint.unwrap().contains("qemu-img check -r all"));
    refused(&patched(72, &[0, 0, 0, 0, 0, 0, 0, 4]), "external data file is not supported");
    refused(&patched(72, &[0x80, 0, 0, 0, 0, 0, 0, 0]), "unknown incompatible feature");
}

/// What counts as free is given out: so such a file may be read, but not written.
#[test]
fn wrong_reference_counts_are_refused_for_writing() {
    let workshop = Workshop::new();
    let raw = workshop.path("disk.raw");
    std::fs::write(&raw, vec![9; 1 << 20]).unwrap();
    for options in
        ["cluster_size=65536", "refcount_bits=1", "refcount_bits=64,cluster_size=512", "compat=0.10"]
    {
        let image = workshop.qcow2("disk.qcow2", &raw, &["-o", options]);
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let open = |write| {
            let layer = Layer { file: file.try_clone().unwrap(), format: Format::Qcow2 };
            Disk::open(vec![layer], write)
        };
        open(true).unwrap();
        let mut pointer = [0; 8];
        file.read_exact_at(&mut pointer, 48).unwrap();
        let table = u64::from_be_bytes(pointer);
        file.read_exact_at(&mut pointer, table).unwrap();
        file.write_all_at(&[0; 8], table).unwrap();
        let error = open(true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenQcow2);
        assert!(
            with_causes(&error).contains("the header at byte 0 counts as free"),
            "{}",
            with_causes(&error)
        );
        open(false).unwrap();
        file.write_all_at(&pointer, table).unwrap();
        let block = u64::from_be_bytes(pointer);
        let mut counts = [0; 64];
        file.read_exact_at(&mut counts, block).unwrap();
        file.write_all_at(&[0; 64], block).unwrap();
        assert!(with_causes(&open(true).unwrap_err()).contains("counts as free"));
        file.write_all_at(&counts, block).unwrap();
        open(true).unwrap();
    }
}

#[test]
fn a_raw_disk_that_looks_like_something_else_says_so() {
    let workshop = Workshop::new();
    let raw = workshop.path("disk.raw");
    std::fs::write(&raw, vec![0; 1 << 20]).unwrap();
    let image = workshop.qcow2("image.img", &raw, &[]);
    let disk = open(&image, None).unwrap();
    let error = Error::from(ec2vmm_image::inspect(&disk).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::NotADisk);
    assert!(error.hint().unwrap().contains("--format qcow2"));
    let right = open(&image, Some(Format::Qcow2)).unwrap();
    assert_eq!(Error::from(ec2vmm_image::inspect(&right).unwrap_err()).hint(), None);
}
