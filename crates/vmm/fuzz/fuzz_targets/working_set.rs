//! Files of working sets: raw, and with a right header in front of any pages. What is read is of this snapshot and
//! there, and what is written is read again.

#![no_main]

use std::{fs::File, os::unix::fs::FileExt};

use arbitrary::Arbitrary;
use ec2vmm_devices_fuzz::heap;
use ec2vmm_vmm::snapshot::working_set::{self, Whose};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

#[derive(Arbitrary, Debug)]
struct Input {
    /// Of another snapshot.
    of_another: bool,
    pages: Vec<u32>,
    /// Bytes that are written over what is there, from this place on.
    over: Option<(u16, Vec<u8>)>,
    /// So many bytes are left.
    cut: Option<u16>,
}

const WHOSE: Whose = Whose { id: Uuid::from_u128(1), ram_bytes: 32 << 20 };
const PAGES: u32 = 32 << 8;

fuzz_target!(|input: Input| {
    let file: File = rustix::fs::memfd_create("set", rustix::fs::MemfdFlags::CLOEXEC).expect("a file").into();
    let Input { of_another, pages, over, cut } = input;
    let whose = if of_another { Whose { id: Uuid::nil(), ..WHOSE } } else { WHOSE };
    working_set::write(&file, whose, &pages).expect("room");
    let whole = over.is_none() && cut.is_none();
    if let Some((at, bytes)) = over {
        file.write_all_at(&bytes, at.into()).expect("room");
    }
    if let Some(cut) = cut {
        file.set_len(cut.into()).expect("room");
    }
    let before = heap::live_bytes();
    let read = working_set::read(&file, WHOSE);
    let kept = heap::live_bytes().saturating_sub(before);
    assert!(kept <= (1 << 16) + pages.len() * 8, "{kept} bytes are kept");
    let is_sound = !of_another && pages.iter().all(|page| *page < PAGES);
    match read {
        Ok(read) => {
            assert!(read.iter().all(|page| *page < PAGES));
            assert!(!whole || is_sound && read == pages);
        }
        Err(error) => assert!(!whole || !is_sound, "{error}"),
    }
});
