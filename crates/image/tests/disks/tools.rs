//! Disks made with the tools that make real ones: `mke2fs`, `sfdisk`, `qemu-img`, `debugfs`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ec2vmm_image::{Boot, Disk, Format, Layer};
use tempfile::TempDir;

/// The first partition's first byte.
pub(crate) const PARTITION_START: u64 = 1 << 20;

/// A folder that becomes a file system, and the disks made from it.
pub(crate) struct Workshop {
    pub(crate) dir: TempDir,
}

impl Workshop {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a file into the file system to be.
    pub(crate) fn file(&self, path: &str, contents: impl AsRef<[u8]>) -> &Self {
        let path = self.path("root").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, contents).unwrap();
        self
    }

    /// Puts a symbolic link into the file system to be.
    pub(crate) fn link(&self, path: &str, target: &str) -> &Self {
        let path = self.path("root").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
        self
    }

    /// Makes an ext4 file system of `mib` MiB.
    pub(crate) fn ext4(&self, name: &str, mib: u64, options: &[&str]) -> PathBuf {
        let image = self.path(name);
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let mut words = vec!["-q", "-F", "-t", "ext4", "-U", UUID, "-L", "rootfs", "-d"];
        let root = self.path("root");
        words.push(root.to_str().unwrap());
        words.extend(options);
        words.push(image.to_str().unwrap());
        run("mke2fs", &words, "");
        image
    }

    /// Puts a file system behind a partition table, written by `sfdisk` from `script`.
    pub(crate) fn partitioned(&self, name: &str, filesystem: &Path, script: &str) -> PathBuf {
        let image = self.path(name);
        let mut file = File::create(&image).unwrap();
        let mut source = File::open(filesystem).unwrap();
        let len = source.metadata().unwrap().len();
        file.set_len(PARTITION_START + len + (1 << 20)).unwrap();
        file.seek(SeekFrom::Start(PARTITION_START)).unwrap();
        std::io::copy(&mut source, &mut file).unwrap();
        run("sfdisk", &["-q", image.to_str().unwrap()], script);
        image
    }

    /// A GPT disk with one partition.
    pub(crate) fn gpt(&self, name: &str, filesystem: &Path) -> PathBuf {
        let sectors = filesystem.metadata().unwrap().len() / 512;
        self.partitioned(name, filesystem, &format!("label: gpt\nstart=2048, size={sectors}, name=root\n"))
    }

    /// Converts a raw disk.
    pub(crate) fn qcow2(&self, name: &str, raw: &Path, options: &[&str]) -> PathBuf {
        let image = self.path(name);
        let mut words = vec!["convert", "-f", "raw", "-O", "qcow2"];
        words.extend(options);
        words.extend([raw.to_str().unwrap(), image.to_str().unwrap()]);
        run("qemu-img", &words, "");
        image
    }
}

/// Opens one file as a disk.
pub(crate) fn open(path: &Path, format: Format, write: bool) -> Disk {
    let file = File::options().read(true).write(write).open(path).unwrap();
    Disk::open(vec![Layer { file, format }], write).unwrap()
}

/// Runs a tool that must be there and succeed, and returns what it prints.
pub(crate) fn run(tool: &str, words: &[&str], input: &str) -> String {
    let mut child = Command::new(tool)
        .args(words)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{tool} is needed (e2fsprogs, fdisk, qemu-utils): {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{tool} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    printed
}

/// The error and its causes on one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    line
}

pub(crate) fn whole_kernel(boot: &Boot) -> Vec<u8> {
    let mut bytes = Vec::new();
    boot.kernel().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// A file that starts like a bzImage of `release`, and is `bytes` long.
pub(crate) fn kernel(release: &str, bytes: usize) -> Vec<u8> {
    let mut kernel: Vec<u8> = (0..bytes).map(|at| (at / 512) as u8).collect();
    kernel[0x1f1..0x400].fill(0);
    kernel[0x1f1] = 4;
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    kernel[0x236..0x238].copy_from_slice(&1_u16.to_le_bytes());
    kernel[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    let version = format!("{release} (builder@host) #1 SMP\0");
    kernel[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
    kernel
}

/// The UUID of every file system made here.
pub(crate) const UUID: &str = "6e1f0c5a-3f7b-4a0e-9d6a-0123456789ab";
