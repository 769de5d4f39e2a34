//! What a kernel of a few instructions is handed over as.

/// A 64-bit ELF file that loads `code` at 1 MiB and begins there.
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 56;
    let size = code.len() as u64;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2_u16, 62].map(u16::to_le_bytes).concat()); // executable, x86-64
    file.extend(1_u32.to_le_bytes());
    file.extend([ADDRESS, 64, 0].map(u64::to_le_bytes).concat()); // entry, program headers, sections
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    file.extend([1_u32, 5].map(u32::to_le_bytes).concat()); // PT_LOAD, read and execute
    file.extend([HEADERS, ADDRESS, ADDRESS, size, size, 0x1000].map(u64::to_le_bytes).concat());
    file.extend(code);
    file
}
