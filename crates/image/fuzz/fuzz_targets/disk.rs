//! The whole chain: a disk, its partitions, file systems, boot entry, kernel and initrd.

#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use ec2vmm_image::{Disk, Format, Layer, find_boot, inspect};
use ec2vmm_image_fuzz::{Base, Program, bases, file, repair_gpt};
use libfuzzer_sys::fuzz_target;

thread_local! {
    /// Each base with its unchanged bytes and a file that holds them between runs.
    static BASES: RefCell<Vec<(Base, Vec<u8>, File)>> = RefCell::new(
        bases(".raw").into_iter().map(|base| (base.bytes.clone(), base)).map(|(bytes, base)| {
            let open = file(&bytes);
            (base, bytes, open)
        }).collect(),
    );
}

fuzz_target!(|input: &[u8]| {
    let mut program = Program(input);
    let Some(choice) = program.byte() else { return };
    if choice == 0xff {
        // The rest of the input is the disk itself.
        look(file(program.0));
        return;
    }
    BASES.with_borrow_mut(|bases| {
        let count = bases.len();
        let (base, bytes, file) = &mut bases[usize::from(choice) % count];
        let mut changed = program.patch(bytes);
        repair_gpt(bytes);
        changed.push(0..4096.min(bytes.len()));
        for range in &changed {
            file.write_all_at(&bytes[range.clone()], range.start as u64).expect("room");
        }
        look(file.try_clone().expect("a descriptor"));
        for range in changed {
            bytes[range.clone()].copy_from_slice(&base.bytes[range.clone()]);
            file.write_all_at(&bytes[range.clone()], range.start as u64).expect("room");
        }
    });
});

fn look(file: File) {
    let Ok(disk) = Disk::open(vec![Layer { file, format: Format::Raw }], false) else { return };
    if let Ok(inspection) = inspect(&disk) {
        assert!(inspection.boot.is_some() != inspection.boot_error.is_some());
    }
    let Ok(boot) = find_boot(&disk) else { return };
    let _ = boot.kernel().map(|mut kernel| std::io::Read::read_to_end(&mut kernel, &mut Vec::new()));
    let mut bytes = 0;
    let read = boot.read_initrd(&mut |piece| {
        bytes += piece.len() as u64;
        Ok(())
    });
    assert!(read.is_err() || bytes == boot.initrd_size());
}
