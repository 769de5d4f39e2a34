//! GRUB's script language, on a disk with a few files.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let _ = ec2vmm_image::boot::fuzz_grub(&text);
});
