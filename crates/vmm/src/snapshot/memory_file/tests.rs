use std::{fs::File, sync::atomic::AtomicBool};

use ec2vmm_snapshot::{Bitmap, MemoryFileError, PAGE_BYTES, read_tail};
use uuid::Uuid;
use vm_memory::{Bytes, GuestAddress};

use super::{TakeError, write};
use crate::memory;

const RAM: u64 = 32 << 20;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn byte(memory: &ec2vmm_devices::Memory, page: u64) -> u8 {
    memory.read_obj(GuestAddress(page * PAGE_BYTES)).unwrap()
}

#[test]
fn a_full_file_and_its_differences_give_the_memory() {
    let before = memory::map(32).unwrap();
    let set = |page: u64, value: u8| before.write_obj(value, GuestAddress(page * PAGE_BYTES)).unwrap();
    for page in [0, 1, 2, 63, 64, 1000, 8191] {
        set(page, 1);
    }
    let [full, first, second] = [(); 3].map(|()| tempfile::tempfile().unwrap());
    assert_eq!(write(&before, &full, id(1), None, &AtomicBool::new(false)).unwrap(), 7 * PAGE_BYTES);
    let changed = |pages: &[u64]| {
        let mut bitmap = Bitmap::new(RAM / PAGE_BYTES);
        pages.iter().for_each(|page| bitmap.set(*page));
        bitmap
    };
    set(64, 0);
    set(65, 2);
    write(&before, &first, id(2), Some((&changed(&[64, 65, 66]), id(1))), &AtomicBool::new(false)).unwrap();
    set(65, 3);
    write(&before, &second, id(3), Some((&changed(&[65]), id(2))), &AtomicBool::new(false)).unwrap();

    let tails =
        [(&full, 0), (&first, 1), (&second, 2)].map(|(file, index)| read_tail(file, index, RAM).unwrap());
    assert_eq!(
        tails.each_ref().map(|tail| (tail.id, tail.parent)),
        [(id(1), None), (id(2), Some(id(1))), (id(3), Some(id(2))),]
    );
    assert_eq!(tails.each_ref().map(|tail| tail.pages.count()), [7, 3, 1]);
    let after = memory::map_file(32, &full).unwrap();
    memory::overlay(&after, &first, tails[1].pages.runs()).unwrap();
    memory::overlay(&after, &second, tails[2].pages.runs()).unwrap();
    for page in 0..RAM / PAGE_BYTES {
        assert_eq!(byte(&after, page), byte(&before, page), "page {page}");
    }
}

#[test]
fn who_writes_to_mapped_memory_changes_neither_the_file_nor_others() {
    let before = memory::map(32).unwrap();
    before.write_slice(&[7; 4096], GuestAddress(0)).unwrap();
    let file = tempfile::tempfile().unwrap();
    write(&before, &file, id(1), None, &AtomicBool::new(false)).unwrap();
    let [one, other] = [(); 2].map(|()| memory::map_file(32, &file).unwrap());
    one.write_slice(&[8; 4096], GuestAddress(0)).unwrap();
    assert_eq!((byte(&one, 0), byte(&other, 0)), (8, 7));
    memory::forget_file(&other).unwrap();
    assert_eq!((byte(&other, 0), byte(&memory::map_file(32, &file).unwrap(), 0)), (0, 7));
}

#[test]
fn a_file_that_is_not_right_is_refused() {
    let memory = memory::map(32).unwrap();
    let file = tempfile::tempfile().unwrap();
    write(&memory, &file, id(1), None, &AtomicBool::new(false)).unwrap();
    read_tail(&file, 0, RAM).unwrap();
    assert!(matches!(read_tail(&file, 0, 2 * RAM), Err(MemoryFileError::Magic { index: 0 })));
    assert!(matches!(read_tail(&file, 4, RAM / 2), Err(MemoryFileError::Magic { index: 4 })));
    let spoil = |at: u64, byte: u8| {
        let copy = tempfile::tempfile().unwrap();
        write(&memory, &copy, id(1), None, &AtomicBool::new(false)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&copy, &[byte], at).unwrap();
        read_tail(&copy, 0, RAM)
    };
    assert!(matches!(spoil(RAM + 8, 2), Err(MemoryFileError::Format { format: 2, .. })));
    for at in [RAM + 12, RAM + 16, RAM + 64, RAM + PAGE_BYTES + 5] {
        assert!(matches!(spoil(at, 0x55), Err(MemoryFileError::Checksum { .. })), "{at:#x}");
    }
    file.set_len(RAM + PAGE_BYTES).unwrap();
    assert!(matches!(read_tail(&file, 0, RAM), Err(MemoryFileError::Magic { .. })));
    assert!(matches!(read_tail(&File::open("/").unwrap(), 0, RAM), Err(MemoryFileError::Read { .. })));
}

#[test]
fn one_that_is_given_up_is_no_snapshot() {
    let memory = memory::map(32).unwrap();
    let file = tempfile::tempfile().unwrap();
    write(&memory, &file, id(1), None, &AtomicBool::new(false)).unwrap();
    let given_up = write(&memory, &file, id(2), None, &AtomicBool::new(true));
    assert!(matches!(given_up, Err(TakeError::GivenUp)));
    assert!(matches!(read_tail(&file, 0, RAM), Err(MemoryFileError::Magic { .. })));
}
