//! What a guest can make of configuration space, whatever it writes.

use std::ops::Range;

use proptest::prelude::*;

use super::{Ids, Registers};

const IDS: Ids = Ids {
    vendor: 0x1af4,
    device: 0x1042,
    revision: 1,
    class: 0x01_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1042,
};

/// With a capability of which the guest may write one byte.
fn registers(base: u64, len: u64) -> Registers {
    let mut registers = Registers::new(&IDS).with_bar(base, len);
    registers.add_capability(0x11, &[1, 2, 3, 4], &[0, 0xff]).unwrap();
    registers
}

fn bar(registers: &Registers) -> u64 {
    u64::from(registers.dword(0x14)) << 32 | u64::from(registers.dword(0x10))
}

proptest! {
    #[test]
    fn a_bar_tells_its_size_and_goes_where_it_is_put(
        base: u64, exponent in 4u32..=40, place: u64, low_first: bool,
    ) {
        let len = 1 << exponent;
        let mut registers = registers(base, len);
        let born = bar(&registers);
        prop_assert_eq!(born, base & !(len - 1) | 4, "64 bits wide, memory");
        registers.write(0x10, &[0xff; 4]);
        registers.write(0x14, &[0xff; 4]);
        prop_assert_eq!(!(bar(&registers) & !0xf) + 1, len);
        let mut halves = [(0x10, 0), (0x14, 32)];
        if !low_first {
            halves.reverse();
        }
        for (at, shift) in halves {
            registers.write(at, &(place >> shift).to_le_bytes()[..4]);
        }
        registers.write(4, &[2, 0]);
        let start = place & !(len - 1);
        prop_assert_eq!(registers.region(), start.checked_add(len).map(|end| start..end));
        registers.reset();
        prop_assert_eq!((bar(&registers), registers.region()), (born, None));
    }

    #[test]
    fn only_what_is_the_guests_changes(
        writes in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..9)), 0..40),
    ) {
        // Command, cache line size, BAR 0, interrupt line, and a byte of the capability.
        const GUESTS: [Range<u16>; 5] = [0x04..0x06, 0x0c..0x0d, 0x10..0x18, 0x3c..0x3d, 0x43..0x44];
        let born = registers(0xc000_0000, 0x8000);
        let mut registers = born.clone();
        for (at, data) in writes {
            // Most of them where something is.
            registers.write(at % 0x110, &data);
            registers.write(at, &data);
        }
        let (mut now, mut then) = ([0; 0x110], [0; 0x110]);
        registers.read(0, &mut now);
        born.read(0, &mut then);
        for (at, (now, then)) in (0..).zip(now.iter().zip(then)) {
            prop_assert!(*now == then || GUESTS.iter().any(|range| range.contains(&at)), "byte {:#x}", at);
        }
        prop_assert_eq!(registers.dword(0x10) & 0x7fff, 4);
        if let Some(region) = registers.region() {
            prop_assert!(region.start % 0x8000 == 0 && region.end - region.start == 0x8000);
        }
    }
}
