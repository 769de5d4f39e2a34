//! The structures that the table is made of, in the order and with the fields of DSP0134 chapter 7.
//! Whatever a monitor cannot know is given as unknown.

use std::ops::Range;

use ec2vmm_vmm_api::config::Identity;

use super::{
    System,
    structure::{Structure, handle},
};

/// All of them, the end-of-table structure last.
pub(super) fn all(system: &System<'_>) -> Vec<Structure> {
    let mut all = vec![
        firmware(system.identity),
        machine(system.identity),
        board(system.identity),
        chassis(system.identity),
        processor(system),
        memory_array(system),
        memory_device(system),
    ];
    all.extend(system.ram.iter().zip(0..).map(|(range, index)| memory_range(range, index)));
    all.push(Structure::new(32, 0).zeroes(6).byte(0)); // booted without errors
    all.push(Structure::new(127, 0)); // end of table
    all
}

/// Type 0 (7.1). Tells that the machine is virtual, and what monitors it.
fn firmware(identity: &Identity) -> Structure {
    const PCI: u64 = 1 << 7;
    const ACPI: u8 = 1 << 0;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    Structure::new(0, 0)
        .text(&identity.manufacturer)
        .text(env!("CARGO_PKG_VERSION"))
        .word(0xf000) // segment
        .text(FIRMWARE_DATE)
        .byte(0) // 64 KiB
        .qword(PCI)
        .byte(ACPI)
        .byte(VIRTUAL_MACHINE)
        .bytes(&[0xff; 4]) // no numeric releases
}

/// Type 1 (7.2). The serial number is the UUID in text, as EC2 has it: cloud-init takes a machine for
/// an EC2 instance only if both are equal.
fn machine(identity: &Identity) -> Structure {
    const POWER_SWITCH: u8 = 6;
    Structure::new(1, 0)
        .text(&identity.manufacturer)
        .text(&identity.product)
        .text(env!("CARGO_PKG_VERSION"))
        .text(&identity.uuid.to_string())
        .bytes(&identity.uuid.to_bytes_le()) // 7.2.1: the first three fields are little-endian
        .byte(POWER_SWITCH)
        .no_text() // SKU
        .no_text() // family
}

/// Type 2 (7.3). EC2 has the instance id as the board's asset tag, so it is here as well.
fn board(identity: &Identity) -> Structure {
    const HOSTING_BOARD: u8 = 1 << 0;
    const MOTHERBOARD: u8 = 0x0a;
    Structure::new(2, 0)
        .text(&identity.manufacturer)
        .no_text() // product
        .no_text() // version
        .no_text() // serial number
        .optional_text(identity.asset_tag.as_deref())
        .byte(HOSTING_BOARD)
        .no_text() // location in the chassis
        .word(handle(3, 0))
        .byte(MOTHERBOARD)
        .byte(0) // contained objects
}

/// Type 3 (7.4).
fn chassis(identity: &Identity) -> Structure {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const UNKNOWN: u8 = 2;
    Structure::new(3, 0)
        .text(&identity.manufacturer)
        .byte(OTHER)
        .no_text() // version
        .no_text() // serial number
        .optional_text(identity.asset_tag.as_deref())
        .bytes(&[SAFE, SAFE, SAFE, UNKNOWN]) // boot-up, power, thermal, security
        .zeroes(4) // OEM-defined
        .byte(0) // height
        .byte(0) // power cords
        .bytes(&[0, 0]) // contained elements and their size
        .no_text() // SKU
}

/// Type 4 (7.5).
fn processor(system: &System<'_>) -> Structure {
    const CENTRAL: u8 = 3;
    const UNKNOWN_FAMILY: u8 = 2;
    const POPULATED_AND_ENABLED: u8 = 1 << 6 | 1;
    const UPGRADE_NONE: u8 = 6;
    const NO_CACHE: u16 = 0xffff;
    const CAPABLE_OF_64_BITS: u16 = 1 << 2;
    let cores = system.cpus;
    Structure::new(4, 0)
        .text("CPU 0")
        .byte(CENTRAL)
        .byte(UNKNOWN_FAMILY)
        .text(&system.identity.manufacturer)
        .zeroes(8) // CPUID: guests have the instruction
        .no_text() // version
        .byte(0) // voltage
        .zeroes(6) // external, maximum and current clock
        .byte(POPULATED_AND_ENABLED)
        .byte(UPGRADE_NONE)
        .word(NO_CACHE)
        .word(NO_CACHE)
        .word(NO_CACHE)
        .no_text() // serial number
        .no_text() // asset tag
        .no_text() // part number
        .bytes(&[cores, cores, cores]) // cores, cores enabled, threads
        .word(CAPABLE_OF_64_BITS)
        .word(UNKNOWN_FAMILY.into())
        .word(cores.into())
        .word(cores.into())
        .word(cores.into())
}

/// Type 16 (7.17).
fn memory_array(system: &System<'_>) -> Structure {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const CORRECTION_UNKNOWN: u8 = 2;
    const SEE_EXTENDED: u32 = 0x8000_0000;
    let bytes = ram_bytes(system.ram);
    let kib = u32::try_from(bytes >> 10).ok().filter(|&kib| kib < SEE_EXTENDED);
    Structure::new(16, 0)
        .bytes(&[SYSTEM_BOARD, SYSTEM_MEMORY, CORRECTION_UNKNOWN])
        .dword(kib.unwrap_or(SEE_EXTENDED))
        .word(NO_ERROR_INFORMATION)
        .word(1) // devices
        .qword(if kib.is_none() { bytes } else { 0 })
}

/// Type 17 (7.18): all memory is one device.
fn memory_device(system: &System<'_>) -> Structure {
    const UNKNOWN_WIDTH: u16 = 0xffff;
    const SEE_EXTENDED: u16 = 0x7fff;
    const EXTENDED_MIB_MAX: u32 = 0x7fff_ffff;
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const DETAIL_OTHER: u16 = 1 << 1;
    let mib = ram_bytes(system.ram) >> 20;
    let short = u16::try_from(mib).ok().filter(|&mib| mib < SEE_EXTENDED);
    let extended = u32::try_from(mib).unwrap_or(EXTENDED_MIB_MAX).min(EXTENDED_MIB_MAX);
    Structure::new(17, 0)
        .word(handle(16, 0))
        .word(NO_ERROR_INFORMATION)
        .word(UNKNOWN_WIDTH)
        .word(UNKNOWN_WIDTH)
        .word(short.unwrap_or(SEE_EXTENDED))
        .byte(DIMM)
        .byte(0) // of no set
        .text("DIMM 0")
        .no_text() // bank
        .byte(RAM)
        .word(DETAIL_OTHER)
        .word(0) // speed
        .text(&system.identity.manufacturer)
        .no_text() // serial number
        .no_text() // asset tag
        .no_text() // part number
        .byte(0) // ranks
        .dword(if short.is_none() { extended } else { 0 })
        .word(0) // configured speed
        .zeroes(6) // voltages
}

/// Type 19 (7.20): addresses that the array answers to.
fn memory_range(range: &Range<u64>, index: u8) -> Structure {
    const SEE_EXTENDED: u32 = 0xffff_ffff;
    let last = range.end.saturating_sub(1);
    let kib = u32::try_from(range.start >> 10).ok().zip(u32::try_from(last >> 10).ok());
    let (first_kib, last_kib) =
        kib.filter(|&(_, last)| last != SEE_EXTENDED).unwrap_or((SEE_EXTENDED, SEE_EXTENDED));
    let (first, last) = if last_kib == SEE_EXTENDED { (range.start, last) } else { (0, 0) };
    Structure::new(19, index)
        .dword(first_kib)
        .dword(last_kib)
        .word(handle(16, 0))
        .byte(1) // devices in a row
        .qword(first)
        .qword(last)
}

fn ram_bytes(ram: &[Range<u64>]) -> u64 {
    ram.iter().map(|range| range.end.saturating_sub(range.start)).sum()
}

const NO_ERROR_INFORMATION: u16 = 0xfffe;
/// Guests work around the faults of firmware by its year, so it is never an old one.
const FIRMWARE_DATE: &str = "01/01/2026";
