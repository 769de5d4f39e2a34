//! File systems of machines that were killed: what counts lies in the journal.
//!
//! Each test makes an old and a new state of one file system, and then a third that is the old one with
//! the difference in its journal. `debugfs` replays a copy of that, to show that the journal is right.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ec2vmm_image::{Format, find_boot};

use crate::tools::{Workshop, kernel, open, run, whole_kernel};

const BLOCK: usize = 4096;

/// An old state, a new one, and the blocks in which they differ.
struct Change {
    workshop: Workshop,
    old: PathBuf,
    new: PathBuf,
    blocks: Vec<u64>,
}

impl Change {
    fn new(features: &str) -> Self {
        let workshop = Workshop::new();
        workshop
            .file("/boot/grub/grub.cfg", grub_cfg("6.1.0-1"))
            .file("/boot/vmlinuz-6.1.0-1", kernel("6.1.0-1", 40_000));
        let old = workshop.ext4("old", 64, &["-b", "4096", "-O", features]);
        let new = workshop.path("new");
        std::fs::copy(&old, &new).unwrap();
        std::fs::write(workshop.path("grub.cfg"), grub_cfg("6.1.0-2")).unwrap();
        let mut second = kernel("6.1.0-2", 40_000);
        // Looks like one of the journal's own blocks, so that it must be escaped.
        second[BLOCK..BLOCK + 4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
        std::fs::write(workshop.path("vmlinuz"), second).unwrap();
        let script = format!(
            "cd /boot\nwrite {} vmlinuz-6.1.0-2\nrm grub/grub.cfg\ncd grub\nwrite {} grub.cfg\n",
            workshop.path("vmlinuz").display(),
            workshop.path("grub.cfg").display()
        );
        debugfs(&workshop, &new, &script);
        let (before, after) = (std::fs::read(&old).unwrap(), std::fs::read(&new).unwrap());
        let differ = |block: &u64| {
            let range = *block as usize * BLOCK..(*block as usize + 1) * BLOCK;
            before[range.clone()] != after[range]
        };
        let blocks: Vec<u64> = (0..(before.len() / BLOCK) as u64).filter(differ).collect();
        assert!(blocks.len() > 5, "{blocks:?}");
        Self { workshop, old, new, blocks }
    }

    fn new_block(&self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        File::open(&self.new).unwrap().read_exact_at(&mut bytes, block * BLOCK as u64).unwrap();
        bytes
    }

    /// What `debugfs` makes of it, and what we do.
    fn check(&self, dirty: &Path) {
        assert_eq!(booted(&self.old), "6.1.0-1");
        assert_eq!(booted(&self.new), "6.1.0-2");
        let replayed = self.workshop.path("replayed");
        std::fs::copy(dirty, &replayed).unwrap();
        debugfs(&self.workshop, &replayed, "jr\n");
        assert_eq!(booted(&replayed), "6.1.0-2", "the test's own journal is wrong");
        assert_eq!(booted(dirty), "6.1.0-2");
        let disk = open(dirty, Format::Raw, false);
        let kernel = std::fs::read(self.workshop.path("vmlinuz")).unwrap();
        assert!(whole_kernel(&find_boot(&disk).unwrap()) == kernel, "the kernel differs");
    }
}

fn grub_cfg(release: &str) -> String {
    format!("menuentry 'Linux' {{\nlinux /boot/vmlinuz-{release} ro\n}}\n")
}

fn booted(image: &Path) -> String {
    find_boot(&open(image, Format::Raw, false)).unwrap().kernel.release.unwrap()
}

fn debugfs(workshop: &Workshop, image: &Path, script: &str) -> String {
    let file = workshop.path("script");
    std::fs::write(&file, script).unwrap();
    run("debugfs", &["-w", "-f", file.to_str().unwrap(), image.to_str().unwrap()], "")
}

/// Journals the change by `debugfs`, in two transactions.
fn journaled(change: &Change, options: &str) -> PathBuf {
    let dirty = change.workshop.path("dirty");
    std::fs::copy(&change.old, &dirty).unwrap();
    let mut script = format!("jo {options}\n");
    for (index, blocks) in change.blocks.chunks(change.blocks.len().div_ceil(2)).enumerate() {
        let contents: Vec<u8> = blocks.iter().flat_map(|block| change.new_block(*block)).collect();
        let file = change.workshop.path(&format!("blocks{index}"));
        std::fs::write(&file, contents).unwrap();
        let list: Vec<String> = blocks.iter().map(u64::to_string).collect();
        script.push_str(&format!("jw -b {} {}\n", list.join(","), file.display()));
    }
    script.push_str("jc\n");
    debugfs(&change.workshop, &dirty, &script);
    dirty
}

#[test]
fn a_journal_is_replayed_with_each_kind_of_checksum() {
    for (features, options) in [
        ("metadata_csum,64bit", "-c -v 3"),
        ("metadata_csum,64bit", "-c -v 2"),
        ("^metadata_csum,64bit", ""),
        ("^metadata_csum,^64bit", ""),
    ] {
        let change = Change::new(features);
        change.check(&journaled(&change, options));
    }
}

#[test]
fn a_transaction_without_commit_is_ignored() {
    let change = Change::new("metadata_csum,64bit");
    let dirty = journaled(&change, "-c -v 3");
    let log = debugfs(&change.workshop, &dirty, "logdump\n");
    let commit = log.lines().rfind(|line| line.contains("(commit block)")).unwrap();
    let index: u64 = commit.rsplit(' ').next().unwrap().parse().unwrap();
    let block = journal_block(&change.workshop, &dirty, index);
    let file = OpenOptions::new().write(true).open(&dirty).unwrap();
    file.write_all_at(&[0; BLOCK], block * BLOCK as u64).unwrap();
    // Half of the change would be there: what is left must be what debugfs finds too.
    let replayed = change.workshop.path("replayed");
    std::fs::copy(&dirty, &replayed).unwrap();
    debugfs(&change.workshop, &replayed, "jr\n");
    let boot = |path: &Path| {
        find_boot(&open(path, Format::Raw, false)).map(|boot| boot.entry).map_err(|e| e.to_string())
    };
    assert_eq!(boot(&dirty), boot(&replayed));
}

/// Where a block of the journal lies in the file system.
fn journal_block(workshop: &Workshop, image: &Path, index: u64) -> u64 {
    let printed = debugfs(workshop, image, &format!("bmap <8> {index}\n"));
    printed
        .lines()
        .find_map(|line| line.trim().parse().ok())
        .unwrap_or_else(|| panic!("no block in {printed:?}"))
}

/// A journal written by hand: it starts three blocks before the end of the ring, so that it goes on at
/// the ring's start, and holds an old copy of a block that a later transaction revokes.
#[test]
fn a_journal_that_wraps_and_revokes_is_replayed() {
    let change = Change::new("^metadata_csum,64bit");
    let dirty = change.workshop.path("dirty");
    std::fs::copy(&change.old, &dirty).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&dirty).unwrap();
    let base = journal_block(&change.workshop, &dirty, 0);
    let mut head = vec![0; BLOCK];
    file.read_exact_at(&mut head, base * BLOCK as u64).unwrap();
    let blocks = u64::from(u32::from_be_bytes(head[0x10..0x14].try_into().unwrap()));
    let mut log = Log { file: &file, change: &change, image: &dirty, blocks, at: blocks - 3 };
    head[0x18..0x1c].copy_from_slice(&7_u32.to_be_bytes());
    head[0x1c..0x20].copy_from_slice(&u32::try_from(log.at).unwrap().to_be_bytes());
    // Revocations, 64-bit numbers.
    head[0x28..0x2c].copy_from_slice(&3_u32.to_be_bytes());
    file.write_all_at(&head, base * BLOCK as u64).unwrap();

    let (revoked, rest) = change.blocks.split_last().unwrap();
    log.descriptor(7, &[(*revoked, vec![0xee; BLOCK])]);
    log.commit(7);
    let changes: Vec<_> = rest.iter().map(|block| (*block, change.new_block(*block))).collect();
    log.descriptor(8, &changes);
    log.revoke(8, *revoked);
    log.commit(8);
    file.write_all_at(&change.new_block(*revoked), revoked * BLOCK as u64).unwrap();
    let mut flags = [0; 4];
    file.read_exact_at(&mut flags, 1024 + 0x60).unwrap();
    file.write_all_at(&(u32::from_le_bytes(flags) | 4).to_le_bytes(), 1024 + 0x60).unwrap();
    change.check(&dirty);
}

struct Log<'a> {
    file: &'a File,
    change: &'a Change,
    image: &'a Path,
    blocks: u64,
    at: u64,
}

impl Log<'_> {
    fn put(&mut self, block: &[u8]) {
        let place = journal_block(&self.change.workshop, self.image, self.at);
        self.file.write_all_at(block, place * BLOCK as u64).unwrap();
        self.at = if self.at + 1 == self.blocks { 1 } else { self.at + 1 };
    }

    fn block(kind: u32, sequence: u32) -> Vec<u8> {
        let mut block = [0xc03b_3998, kind, sequence].map(u32::to_be_bytes).concat();
        block.resize(BLOCK, 0);
        block
    }

    fn descriptor(&mut self, sequence: u32, changes: &[(u64, Vec<u8>)]) {
        let mut block = Self::block(1, sequence);
        let mut at = 12;
        for (index, (number, contents)) in changes.iter().enumerate() {
            let escaped = u32::from(contents.starts_with(&0xc03b_3998_u32.to_be_bytes()));
            let same_uuid = if index > 0 { 2 } else { 0 };
            let last = if index + 1 == changes.len() { 8 } else { 0 };
            block[at..at + 4].copy_from_slice(&u32::try_from(*number).unwrap().to_be_bytes());
            block[at + 4..at + 8].copy_from_slice(&(escaped | same_uuid | last).to_be_bytes());
            at += if index > 0 { 12 } else { 28 };
        }
        self.put(&block);
        for (_, contents) in changes {
            let mut contents = contents.clone();
            if contents.starts_with(&0xc03b_3998_u32.to_be_bytes()) {
                contents[..4].fill(0);
            }
            self.put(&contents);
        }
    }

    fn revoke(&mut self, sequence: u32, number: u64) {
        let mut block = Self::block(5, sequence);
        block[12..16].copy_from_slice(&24_u32.to_be_bytes());
        block[16..24].copy_from_slice(&number.to_be_bytes());
        self.put(&block);
    }

    fn commit(&mut self, sequence: u32) {
        let block = Self::block(2, sequence);
        self.put(&block);
    }
}
