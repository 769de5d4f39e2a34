//! Memory files of snapshots: their tails, raw and with a right checksum, alone and merged. What is merged is a full
//! file of the wanted name, and has each page from the newest file that has it.

#![no_main]

use std::{fs::File, os::unix::fs::FileExt};

use arbitrary::Arbitrary;
use ec2vmm_snapshot::{Bitmap, CRC, MemoryWriter, PAGE_BYTES, merge, read_head, read_tail};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

#[derive(Arbitrary, Debug)]
struct Input {
    files: Vec<Memory>,
    /// The number of the snapshot that they are merged into; mostly the last one's.
    wanted: Option<u8>,
}

#[derive(Arbitrary, Debug)]
struct Memory {
    /// Its number; mostly its place.
    id: Option<u8>,
    parent: Option<Option<u8>>,
    pages: Vec<(u8, u8)>,
    spoilt: Option<Spoilt>,
}

#[derive(Arbitrary, Debug)]
enum Spoilt {
    /// These bytes from this place of the tail on.
    Bytes(u16, Vec<u8>),
    /// Likewise, before the checksum is made.
    Signed(u16, Vec<u8>),
    /// So many bytes of the file are left.
    Cut(u32),
}

const RAM: u64 = 1 << 20;
const FILES_MAX: usize = 4;
/// Of the checksum in the tail.
const SUM: usize = 64;

fn name(number: u8) -> Uuid {
    Uuid::from_u128(number.into())
}

fn memfd() -> File {
    rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).expect("a file").into()
}

impl Memory {
    fn file(&self, place: u8) -> File {
        let file = memfd();
        let parent = self.parent.unwrap_or(place.checked_sub(1));
        let mut writer = MemoryWriter::new(&file, RAM, parent.map(name)).expect("room");
        for (page, byte) in &self.pages {
            writer.put(u64::from(*page) * PAGE_BYTES, &[*byte; PAGE_BYTES as usize], |_| true).expect("room");
        }
        writer.finish(name(self.id.unwrap_or(place))).expect("room");
        match &self.spoilt {
            None => {}
            Some(Spoilt::Cut(left)) => file.set_len(u64::from(*left) % (2 * RAM)).expect("room"),
            Some(Spoilt::Bytes(at, bytes)) => file.write_all_at(bytes, RAM + u64::from(*at)).expect("room"),
            Some(Spoilt::Signed(at, bytes)) => {
                file.write_all_at(bytes, RAM + u64::from(*at)).expect("room");
                sign(&file);
            }
        }
        file
    }
}

fn sign(file: &File) {
    let mut tail = vec![0; PAGE_BYTES as usize + (RAM / PAGE_BYTES / 8) as usize];
    file.read_exact_at(&mut tail, RAM).expect("a tail");
    let mut digest = CRC.digest();
    digest.update(&tail[..SUM]);
    digest.update(&tail[PAGE_BYTES as usize..]);
    file.write_all_at(&digest.finalize().to_le_bytes(), RAM + SUM as u64).expect("room");
}

fn page(file: &File, page: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; PAGE_BYTES as usize];
    file.read_exact_at(&mut bytes, page * PAGE_BYTES).ok().map(|()| bytes)
}

fuzz_target!(|input: Input| {
    let files: Vec<File> =
        (0..).zip(input.files.iter().take(FILES_MAX)).map(|(place, memory)| memory.file(place)).collect();
    let tails: Vec<_> = files.iter().enumerate().map(|(index, file)| read_tail(file, index, RAM)).collect();
    for tail in tails.iter().flatten() {
        assert!(tail.pages.runs().all(|(first, count)| count > 0 && first + count <= RAM / PAGE_BYTES));
    }
    let last = input.files.iter().take(FILES_MAX).zip(0..).last();
    let last = last.map_or(0, |(memory, place)| memory.id.unwrap_or(place));
    let wanted = name(input.wanted.unwrap_or(last));
    let head = read_head(format!(r#"{{"id":"{wanted}","shape":{{"memory_mib":1}}}}"#).as_bytes()).expect("a head");
    let into = memfd();
    if merge(&head, &files, &into).is_err() {
        return;
    }
    let merged = read_tail(&into, 0, RAM).expect("it was merged");
    assert_eq!((merged.id, merged.parent), (wanted, None));
    let pages: Vec<&Bitmap> = tails.iter().map(|tail| &tail.as_ref().expect("it was merged").pages).collect();
    for number in 0..RAM / PAGE_BYTES {
        let newest = pages.iter().zip(&files).rev().find(|(pages, _)| pages.has(number));
        let expected = newest.and_then(|(_, file)| page(file, number)).unwrap_or(vec![0; PAGE_BYTES as usize]);
        assert_eq!(merged.pages.has(number), expected.iter().any(|byte| *byte != 0), "page {number}");
        assert_eq!(page(&into, number), Some(expected), "page {number}");
    }
});
