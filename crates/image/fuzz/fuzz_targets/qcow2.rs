//! qcow2 files: opened for reading or writing, read, written, discarded, flushed, as the input says.

#![no_main]

use std::fs::File;
use std::sync::OnceLock;

use ec2vmm_image::{Disk, Format, Layer};
use ec2vmm_image_fuzz::{Base, Program, bases, file};
use libfuzzer_sys::fuzz_target;

static BASES: OnceLock<Vec<Base>> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let mut program = Program(input);
    let Some(choice) = program.byte() else { return };
    let bases = BASES.get_or_init(|| bases(".qcow2"));
    let mut bytes = bases[usize::from(choice) % bases.len()].bytes.clone();
    program.patch(&mut bytes);
    let top = file(&bytes);
    // Half of all disks have something beneath them.
    let mut layers = vec![Layer { file: top, format: Format::Qcow2 }];
    if choice & 0x80 != 0 {
        layers.push(Layer { file: beneath(), format: Format::Raw });
    }
    // What is only read is checked less.
    let write = choice & 0x40 == 0;
    let Ok(disk) = Disk::open(layers, write) else { return };
    let mut buffer = vec![0; 4096];
    let _ = disk.read_at(&mut buffer, 0);
    let _ = disk.read_at(&mut buffer, disk.size().saturating_sub(4096));
    for _ in 0..32 {
        let (Some(act), Some(at)) = (program.byte(), program.number(3)) else { break };
        let at = at * 512 % disk.size();
        let len = (1 + u64::from(act >> 3)) * 512;
        let len = len.min(disk.size() - at);
        let buffer = &mut vec![act; len as usize];
        let _ = match act & 7 {
            0 | 1 => disk.write_at(buffer, at),
            2 => disk.write_zeroes(at, len, false),
            3 => disk.write_zeroes(at, len, true),
            4 => disk.discard(at, len),
            5 => disk.flush(),
            _ => disk.read_at(buffer, at),
        };
    }
});

fn beneath() -> File {
    static BYTES: [u8; 65536] = [0x5a; 65536];
    file(&BYTES)
}
