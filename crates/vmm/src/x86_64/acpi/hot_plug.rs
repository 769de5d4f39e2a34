//! The registers by which PCI functions come and go while a guest runs: the DSDT's methods use them, and
//! nobody else.
//!
//! | port | read | write |
//! |---|---|---|
//! | [`layout::SLOTS_FILLED_PORT`] | slots that were filled since the last read | |
//! | [`layout::SLOTS_WANTED_PORT`] | slots that the guest has been asked for since the last read | |
//! | [`layout::SLOTS_EJECT_PORT`] | | the guest lets go of these slots |
//!
//! Each is 32 bits wide, a bit a slot of bus 0; other widths read as ones and are not written.
//!
//! ```text
//!   filled ──(guest drives it)──► ask_for ──guest ejects──► empty      the guest's thread empties the slot
//!      └───────────────────────────────────── withdraw ───► empty      by force: the event loop does
//! ```
//!
//! Invariant: a slot that was asked for is let go of once, by the guest or by force; a guest lets go of no
//! slot that it was not asked for.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::x86_64::layout;

/// The registers. Nothing here waits or locks.
#[derive(Debug, Default)]
pub struct HotPlug {
    filled: AtomicU32,
    wanted: AtomicU32,
    /// Asked for, and not let go of.
    asked: AtomicU32,
}

impl HotPlug {
    /// For a snapshot: slots that were filled, that are wanted, and that were asked for.
    pub fn save(&self) -> [u32; 3] {
        [&self.filled, &self.wanted, &self.asked].map(|slots| slots.load(Ordering::Acquire))
    }

    /// As in a snapshot.
    pub fn restore(&self, saved: [u32; 3]) {
        for (slots, saved) in [&self.filled, &self.wanted, &self.asked].into_iter().zip(saved) {
            slots.store(saved, Ordering::Release);
        }
    }

    /// Whether a port is one of these registers.
    pub fn claims(port: u16) -> bool {
        layout::SLOT_PORTS.contains(&port)
    }

    /// A guest reads a port.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let [_, _, _, _] = data {
            let slots = match port {
                layout::SLOTS_FILLED_PORT => self.filled.swap(0, Ordering::AcqRel),
                layout::SLOTS_WANTED_PORT => self.wanted.swap(0, Ordering::AcqRel),
                layout::SLOTS_EJECT_PORT => 0,
                _ => return,
            };
            data.copy_from_slice(&slots.to_le_bytes());
        }
    }

    /// A guest writes a port. Returns the slots that it lets go of by that: whoever calls this empties them.
    pub fn write(&self, port: u16, data: &[u8]) -> impl Iterator<Item = u8> + use<> {
        let gone = match *data {
            [a, b, c, d] if port == layout::SLOTS_EJECT_PORT => {
                let slots = u32::from_le_bytes([a, b, c, d]);
                self.asked.fetch_and(!slots, Ordering::AcqRel) & slots
            }
            _ => 0,
        };
        (0..SLOTS).filter(move |slot| gone & mask(*slot) != 0)
    }

    /// A slot has been filled; the guest learns of it by [`super::Event::Slots`].
    pub fn fill(&self, slot: u8) {
        self.filled.fetch_or(mask(slot), Ordering::AcqRel);
    }

    /// The guest is asked, or asked once more, to let go of a slot; it learns of it by
    /// [`super::Event::Slots`].
    pub fn ask_for(&self, slot: u8) {
        self.asked.fetch_or(mask(slot), Ordering::AcqRel);
        self.wanted.fetch_or(mask(slot), Ordering::AcqRel);
    }

    /// A slot is to be emptied by force: forgets what the guest was told of it. Whether it was asked for, and
    /// not let go of.
    pub fn withdraw(&self, slot: u8) -> bool {
        let keep = !mask(slot);
        self.filled.fetch_and(keep, Ordering::AcqRel);
        self.wanted.fetch_and(keep, Ordering::AcqRel);
        self.asked.fetch_and(keep, Ordering::AcqRel) & mask(slot) != 0
    }
}

/// No bit of a slot that is not there.
pub(super) fn mask(slot: u8) -> u32 {
    1_u32.checked_shl(slot.into()).unwrap_or(0)
}

const SLOTS: u8 = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(registers: &HotPlug, port: u16) -> u32 {
        let mut data = [0; 4];
        registers.read(port, &mut data);
        u32::from_le_bytes(data)
    }

    fn eject(registers: &HotPlug, slots: u32) -> Vec<u8> {
        registers.write(layout::SLOTS_EJECT_PORT, &slots.to_le_bytes()).collect()
    }

    #[test]
    fn news_are_read_once() {
        let registers = HotPlug::default();
        registers.fill(5);
        registers.fill(31);
        assert_eq!(read(&registers, layout::SLOTS_FILLED_PORT), 1 << 5 | 1 << 31);
        assert_eq!(read(&registers, layout::SLOTS_FILLED_PORT), 0);
        assert_eq!(read(&registers, layout::SLOTS_WANTED_PORT), 0);
    }

    #[test]
    fn a_guest_lets_go_of_what_it_was_asked_for_and_of_nothing_else() {
        let registers = HotPlug::default();
        registers.fill(5);
        assert_eq!(eject(&registers, u32::MAX), [0_u8; 0]);
        registers.ask_for(5);
        registers.ask_for(7);
        registers.ask_for(7);
        assert_eq!(read(&registers, layout::SLOTS_WANTED_PORT), 1 << 5 | 1 << 7);
        assert_eq!(eject(&registers, 1 << 7 | 1 << 6), [7]);
        assert_eq!(eject(&registers, u32::MAX), [5]);
        assert_eq!(eject(&registers, u32::MAX), [0_u8; 0]);
    }

    #[test]
    fn either_the_guest_lets_go_or_it_is_forced() {
        let registers = HotPlug::default();
        assert!(!registers.withdraw(9), "it was not asked for");
        registers.ask_for(9);
        assert!(registers.withdraw(9));
        assert_eq!(eject(&registers, 1 << 9), [0_u8; 0]);
        assert_eq!(read(&registers, layout::SLOTS_WANTED_PORT), 0);
        registers.ask_for(9);
        assert_eq!(eject(&registers, 1 << 9), [9]);
        assert!(!registers.withdraw(9));
    }

    proptest! {
        #[test]
        fn no_access_is_refused_or_answered_beyond_its_size(
            offset in 0u16..16, mut data in proptest::collection::vec(any::<u8>(), 0..=8), write: bool,
        ) {
            let registers = HotPlug::default();
            registers.ask_for(3);
            let port = layout::SLOT_PORTS.start + offset;
            if write {
                let gone: Vec<_> = registers.write(port, &data).collect();
                prop_assert!(gone.is_empty() || data.len() == 4 && gone == [3]);
            } else {
                registers.read(port, &mut data);
            }
        }
    }
}
