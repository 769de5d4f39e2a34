//! Where everything is: guest-physical addresses, ports and interrupt lines of an x86-64 machine.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0x0000_0500` | | [`GDT`] of the boot processor |
//! | `0x0000_6000` | `0x0000_7000` | [`PVH_START_INFO`] and what it points to, for a kernel that boots by PVH |
//! | `0x0000_7000` | `0x0000_8000` | [`ZERO_PAGE`]: `boot_params`, for a kernel that boots by the Linux protocol |
//! | | `0x0000_8ff0` | [`BOOT_STACK`], growing down |
//! | `0x0000_9000` | `0x0000_f000` | [`BOOT_PAGE_TABLES`]: PML4, PDPT, 4 page directories |
//! | `0x0002_0000` | `0x0003_0000` | [`CMDLINE`] |
//! | `0x0009_fc00` | `0x0010_0000` | reserved, as on every PC; in it: |
//! | `0x000d_0100` | `0x000d_0110` | [`VM_GENERATION`] |
//! | `0x000e_0000` | `0x000f_0000` | [`ACPI_TABLES`], RSDP first, where a scan finds it too |
//! | `0x000f_0000` | `0x000f_fff0` | [`SMBIOS`], entry point first, where a scan finds it |
//! | `0x000f_fff0` | `0x0010_0000` | [`RESET_VECTOR`] |
//! | `0x0010_0000` | | [`KERNEL`] |
//! | | `0xc000_0000` | end of the RAM below the hole |
//! | `0xc000_0000` | `0xe000_0000` | [`PCI_WINDOW_32`] |
//! | `0xe000_0000` | `0xe010_0000` | [`ECAM`], one bus; room up to `0xf000_0000` for 255 more |
//! | `0xfec0_0000` | `0xfec0_1000` | [`IOAPIC`] |
//! | `0xfee0_0000` | `0xfee0_1000` | [`LAPIC`] |
//! | `0xfffb_c000` | `0xfffc_0000` | [`KVM_IDENTITY_MAP`], [`KVM_TSS`] |
//! | `0x1_0000_0000` | | the rest of RAM, then [`pci_window_64`] |
//!
//! | ports | line | what |
//! |---|---|---|
//! | `0x070..0x072` | | [`RTC_PORTS`], clock and its RAM |
//! | `0x3f8..0x400` | 4 | [`COM1_PORTS`], 16550 |
//! | `0x600..0x603` | 16 | [`ACPI_PORTS`], sleep and event registers |
//! | `0x604..0x610` | | [`SLOT_PORTS`], PCI slots that are filled and emptied |
//! | `0xcf8..0xcfc`, `0xcfc..0xd00` | | [`PCI_CONFIG_ADDRESS_PORT`], [`PCI_CONFIG_DATA_PORTS`] |
//! | `0xcf9` | | [`RESET_PORT`] |
//!
//! Lines are IOAPIC pins 0 to 23; MSI-X routes come after them.
//!
//! Invariant: nothing overlaps, and [`memory_map`] tells a guest of all that is not RAM and not found
//! in another way.

use std::ops::Range;

/// Global descriptor table that the boot processor starts with.
pub const GDT: u64 = 0x500;
/// `hvm_start_info`, its memory map and module list.
pub const PVH_START_INFO: u64 = 0x6000;
/// `boot_params`, one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer of the boot processor.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Six pages: PML4, PDPT and four page directories, which map the first 4 GiB to themselves.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line, with its terminating zero.
pub const CMDLINE: Range<u64> = 0x2_0000..0x3_0000;
/// From here to 1 MiB nothing is a guest's to use.
pub const LEGACY_HOLE: Range<u64> = 0x9_fc00..0x10_0000;
/// The VM generation id. Not where a scan for option ROMs looks, which is every 2 KiB.
pub const VM_GENERATION: Range<u64> = 0xd_0100..0xd_0110;
/// RSDP, then the tables.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_0000;
/// 64-bit entry point, then the structure table.
pub const SMBIOS: Range<u64> = 0xf_0000..0xf_fff0;
/// F000:FFF0 in real mode, where a PC begins.
pub const RESET_VECTOR: Range<u64> = 0xf_fff0..0x10_0000;
/// Where a kernel is loaded.
pub const KERNEL: u64 = 0x10_0000;

/// No RAM here.
pub const HOLE_32: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// 32-bit base address registers.
pub const PCI_WINDOW_32: Range<u64> = 0xc000_0000..0xe000_0000;
/// Configuration space of PCI segment 0, bus 0: 1 MiB.
pub const ECAM: Range<u64> = 0xe000_0000..0xe010_0000;
/// The last bus that [`ECAM`] covers.
pub const PCI_BUS_LAST: u8 = 0;
/// I/O interrupt controller, 24 pins.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local interrupt controllers.
pub const LAPIC: u64 = 0xfee0_0000;
/// The page that KVM needs for real mode without unrestricted-guest support
/// (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs for the same (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// First serial port.
pub const COM1_PORTS: Range<u16> = 0x3f8..0x400;
/// Its line, edge-triggered.
pub const COM1_GSI: u32 = 4;
/// Index and data port of the clock.
pub const RTC_PORTS: Range<u16> = 0x70..0x72;
/// Sleep control, sleep status and event status, a byte each.
pub const ACPI_PORTS: Range<u16> = 0x600..0x603;
/// `SLEEP_CONTROL_REG` (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// `SLEEP_STATUS_REG` (ACPI 6.5, 4.8.3.7).
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// Pending events; reading clears them.
pub const EVENT_STATUS_PORT: u16 = 0x602;
/// Three registers of 32 bits, a bit a slot of PCI bus 0.
pub const SLOT_PORTS: Range<u16> = 0x604..0x610;
/// Slots that were filled; reading clears them.
pub const SLOTS_FILLED_PORT: u16 = 0x604;
/// Slots that the guest is asked for; reading clears them.
pub const SLOTS_WANTED_PORT: u16 = 0x608;
/// Lets go of slots, by a write.
pub const SLOTS_EJECT_PORT: u16 = 0x60c;
/// Selects a register of PCI configuration space, by a write of 4 bytes; the byte behind it is the
/// reset port's, by a write of 1 byte.
pub const PCI_CONFIG_ADDRESS_PORT: u16 = 0xcf8;
/// The selected register.
pub const PCI_CONFIG_DATA_PORTS: Range<u16> = 0xcfc..0xd00;
/// Says that events are pending. Edge-triggered, and beyond the ISA lines, which guests treat specially.
pub const EVENT_GSI: u32 = 16;
/// `RESET_REG` (ACPI 6.5, 4.8.3.6), at the port that PCI chipsets have had theirs, so that guests
/// that do not ask ACPI find it too.
pub const RESET_PORT: u16 = 0xcf9;
/// Pins of the IOAPIC, which are the first interrupt lines.
pub const IOAPIC_PINS: u32 = 24;
/// The first line that no pin has: routes of message-signalled interrupts start here.
pub const MSI_GSI_BASE: u32 = IOAPIC_PINS;

/// The most lines of one PCI function: a vector a queue, and one more.
pub const MSI_GSIS: u32 = 64;

/// The lines of the function in a PCI slot.
pub fn msi_gsis(pci_device: u8) -> Range<u32> {
    let first = MSI_GSI_BASE + u32::from(pci_device) * MSI_GSIS;
    first..first + MSI_GSIS
}

/// Where the base address register of the function in a PCI slot is until the guest moves it: `len` bytes,
/// a power of two.
pub fn bar(pci_device: u8, len: u64) -> u64 {
    PCI_WINDOW_32.start + u64::from(pci_device) * len
}

/// One entry of the map that a guest is given (e820).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: RegionKind,
}

/// What a part of the address space is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RegionKind {
    /// A guest's to use.
    Ram,
    /// Not a guest's to use.
    Reserved,
}

impl RegionKind {
    /// Its number in e820 (ACPI 6.5, table 15.4) and in a PVH memory map alike.
    pub fn e820(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

/// Where memory of `memory_mib` MiB is: from 0 up to the hole, and what is left above it.
pub fn ram(memory_mib: u64) -> Vec<Range<u64>> {
    let bytes = memory_mib.saturating_mul(MIB);
    let low = 0..bytes.min(HOLE_32.start);
    match bytes.saturating_sub(HOLE_32.start) {
        0 => vec![low],
        above => vec![low, HOLE_32.end..HOLE_32.end.saturating_add(above)],
    }
}

/// The map that a guest with `memory_mib` MiB (at least 2) is given, in ascending order.
pub fn memory_map(memory_mib: u64) -> Vec<Region> {
    let region = |range: Range<u64>, kind| Region { start: range.start, len: range.end - range.start, kind };
    let mut map = Vec::new();
    for range in ram(memory_mib) {
        if range.start == 0 {
            map.push(region(0..LEGACY_HOLE.start, RegionKind::Ram));
            map.push(region(LEGACY_HOLE, RegionKind::Reserved));
            map.push(region(LEGACY_HOLE.end..range.end, RegionKind::Ram));
            map.push(region(ECAM, RegionKind::Reserved));
            map.push(region(KVM_IDENTITY_MAP..KVM_TSS + 3 * PAGE, RegionKind::Reserved));
        } else {
            map.push(region(range, RegionKind::Ram));
        }
    }
    map
}

/// Where 64-bit base address registers go: 32 GiB above all RAM, or nothing where a processor with
/// `address_bits` physical address bits does not reach so far.
pub fn pci_window_64(memory_mib: u64, address_bits: u8) -> Option<Range<u64>> {
    let ram_end = ram(memory_mib).last()?.end.max(HOLE_32.end);
    let start = ram_end.checked_next_multiple_of(PCI_WINDOW_64_BYTES)?;
    let end = start.checked_add(PCI_WINDOW_64_BYTES)?;
    let limit = 1u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX);
    (end <= limit).then_some(start..end)
}

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const PCI_WINDOW_64_BYTES: u64 = 32 << 30;

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(memory_mib: u64, expected: &Expect) {
        let lines: String = memory_map(memory_mib)
            .iter()
            .map(|r| format!("{:#011x}..{:#011x} {:?}\n", r.start, r.start + r.len, r.kind))
            .collect();
        expected.assert_eq(&lines);
    }

    #[test]
    fn a_small_machine_has_all_its_memory_below_the_hole() {
        check(
            256,
            &expect![[r#"
                0x000000000..0x00009fc00 Ram
                0x00009fc00..0x000100000 Reserved
                0x000100000..0x010000000 Ram
                0x0e0000000..0x0e0100000 Reserved
                0x0fffbc000..0x0fffc0000 Reserved
            "#]],
        );
    }

    #[test]
    fn a_large_machine_goes_on_above_the_hole() {
        check(
            4096,
            &expect![[r#"
                0x000000000..0x00009fc00 Ram
                0x00009fc00..0x000100000 Reserved
                0x000100000..0x0c0000000 Ram
                0x0e0000000..0x0e0100000 Reserved
                0x0fffbc000..0x0fffc0000 Reserved
                0x100000000..0x140000000 Ram
            "#]],
        );
        assert_eq!(ram(3072).len(), 1);
    }

    #[test]
    fn every_slot_has_lines_and_addresses_of_its_own() {
        for slot in 0..32 {
            assert_eq!(msi_gsis(slot).end, msi_gsis(slot + 1).start);
            let next = bar(slot + 1, 0x8000);
            assert_eq!(bar(slot, 0x8000) + 0x8000, next);
            // There is room for what guests arrange themselves.
            assert!(next < PCI_WINDOW_32.start + (PCI_WINDOW_32.end - PCI_WINDOW_32.start) / 2);
        }
        // KVM_MAX_IRQ_ROUTES of x86.
        assert!(msi_gsis(31).end <= 4096);
    }

    #[test]
    fn low_memory_is_shared_out_without_overlap() {
        let parts = [
            GDT..GDT + 0x100,
            PVH_START_INFO..ZERO_PAGE,
            ZERO_PAGE..ZERO_PAGE + PAGE,
            ZERO_PAGE + PAGE..BOOT_STACK,
            BOOT_PAGE_TABLES..BOOT_PAGE_TABLES + 6 * PAGE,
            CMDLINE,
            VM_GENERATION,
            ACPI_TABLES,
            SMBIOS,
            RESET_VECTOR,
            KERNEL..KERNEL + 1,
            PCI_WINDOW_32,
            ECAM,
            IOAPIC..IOAPIC + PAGE,
            LAPIC..LAPIC + PAGE,
            KVM_IDENTITY_MAP..KVM_TSS,
            KVM_TSS..KVM_TSS + 3 * PAGE,
            HOLE_32.end..HOLE_32.end + 1,
        ];
        assert!(parts.is_sorted_by_key(|part| part.start));
        for pair in parts.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
    }

    proptest! {
        #[test]
        fn every_map_is_sorted_disjoint_and_complete(memory_mib in 2u64..(1 << 30), bits in 36u8..=52) {
            let map = memory_map(memory_mib);
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].len <= pair[1].start);
            }
            let ram_bytes: u64 =
                map.iter().filter(|r| r.kind == RegionKind::Ram).map(|r| r.len).sum();
            let lost = LEGACY_HOLE.end - LEGACY_HOLE.start;
            prop_assert_eq!(ram_bytes, memory_mib * MIB - lost);
            if let Some(window) = pci_window_64(memory_mib, bits) {
                let last = map.last().unwrap();
                prop_assert!(window.start >= last.start + last.len);
                prop_assert!(window.start >= HOLE_32.end && window.end <= 1 << bits);
            }
        }
    }
}
