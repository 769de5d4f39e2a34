//! The registers that the tables name: reset, sleep control and status, pending events.
//!
//! A vCPU thread reads and writes them; the event loop raises events. Nothing here waits or locks.
//! Invariant: an event that is raised is read by the guest exactly once, whatever comes in between.

use std::sync::atomic::{AtomicU8, Ordering};

use vm_superio::Trigger;

use crate::x86_64::layout;

/// The registers, generic over the line that says that events are pending.
#[derive(Debug)]
pub struct Registers<T> {
    line: T,
    pending: AtomicU8,
}

/// What the guest asks for by a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Request {
    /// Start again, with all devices reset.
    Reset,
    /// End.
    PowerOff,
}

/// Something that a guest is told of. A bit each; what a guest does on it is in the DSDT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// Somebody pressed the power button.
    PowerButton,
    /// A PCI slot was filled, or is to be let go of: [`super::HotPlug`] says which.
    Slots,
    /// The machine has gone on from a snapshot.
    GenerationChanged,
}

impl Event {
    /// All events, lowest bit first.
    pub const ALL: &[Self] = &[Self::PowerButton, Self::Slots, Self::GenerationChanged];

    /// Its bit of the pending-events register.
    pub fn mask(self) -> u8 {
        match self {
            Self::PowerButton => 1 << 0,
            Self::Slots => 1 << 1,
            Self::GenerationChanged => 1 << 7,
        }
    }
}

impl<T: Trigger> Registers<T> {
    /// Registers with nothing pending. `line` triggers [`layout::EVENT_GSI`].
    pub fn new(line: T) -> Self {
        Self { line, pending: AtomicU8::new(0) }
    }

    /// Whether a port is one of these registers.
    pub fn claims(port: u16) -> bool {
        port == layout::RESET_PORT || layout::ACPI_PORTS.contains(&port)
    }

    /// A guest reads a port. Registers are a byte wide: the rest of a wider access is not theirs, and
    /// reads as ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(byte) = data.first_mut() {
            *byte = match port {
                layout::EVENT_STATUS_PORT => self.pending.swap(0, Ordering::AcqRel),
                layout::SLEEP_CONTROL_PORT | layout::SLEEP_STATUS_PORT | layout::RESET_PORT => 0,
                _ => 0xff,
            };
        }
    }

    /// A guest writes a port.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<Request> {
        let &[value] = data else { return None };
        match port {
            layout::RESET_PORT if value & RESET_CPU != 0 => Some(Request::Reset),
            layout::SLEEP_CONTROL_PORT if value & SLEEP_ENABLE != 0 => {
                (value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_S5).then_some(Request::PowerOff)
            }
            _ => None,
        }
    }

    /// Tells the guest of an event.
    ///
    /// # Errors
    /// What triggering the line gives. The event stays pending then.
    pub fn raise(&self, event: Event) -> Result<(), T::E> {
        self.pending.fetch_or(event.mask(), Ordering::AcqRel);
        self.line.trigger()
    }

    /// What the guest has not read yet, for a snapshot.
    pub fn pending(&self) -> u8 {
        self.pending.load(Ordering::Acquire)
    }

    /// As in a snapshot. The line is not triggered: it was.
    pub fn restore(&self, pending: u8) {
        self.pending.store(pending, Ordering::Release);
    }

    /// Forgets what is pending, as a machine reset does.
    pub fn reset(&self) {
        let Self { line: _, pending } = self;
        pending.store(0, Ordering::Release);
    }
}

/// What the FADT has guests write to the reset port: reset the processors, and everything else.
pub const RESET_VALUE: u8 = RESET_CPU | RESET_SYSTEM;
/// What the DSDT has guests write as sleep type for soft off.
pub(super) const SLEEP_TYPE_S5: u8 = 5;

// The reset control register of PCI chipsets.
const RESET_SYSTEM: u8 = 1 << 1;
const RESET_CPU: u8 = 1 << 2;
// The sleep control register (ACPI 6.5, table 4.19).
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0x7;
const SLEEP_ENABLE: u8 = 1 << 5;

#[cfg(test)]
mod tests {
    use std::{cell::Cell, convert::Infallible};

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Line(Cell<u32>);

    impl Trigger for Line {
        type E = Infallible;

        fn trigger(&self) -> Result<(), Infallible> {
            self.0.set(self.0.get() + 1);
            Ok(())
        }
    }

    fn read_byte(registers: &Registers<Line>, port: u16) -> u8 {
        let mut byte = [0xaa];
        registers.read(port, &mut byte);
        byte[0]
    }

    #[test]
    fn soft_off_is_what_the_tables_say() {
        let registers = Registers::new(Line::default());
        let control = layout::SLEEP_CONTROL_PORT;
        assert_eq!(registers.write(control, &[5 << 2 | 1 << 5]), Some(Request::PowerOff));
        assert_eq!(registers.write(control, &[5 << 2]), None, "not enabled");
        assert_eq!(registers.write(control, &[3 << 2 | 1 << 5]), None, "no such state here");
        assert_eq!(registers.write(layout::SLEEP_STATUS_PORT, &[0x80]), None);
        assert_eq!(read_byte(&registers, layout::SLEEP_STATUS_PORT), 0);
    }

    #[test]
    fn reset_is_what_the_tables_say() {
        let registers = Registers::new(Line::default());
        assert_eq!(registers.write(layout::RESET_PORT, &[RESET_VALUE]), Some(Request::Reset));
        assert_eq!(registers.write(layout::RESET_PORT, &[RESET_SYSTEM]), None, "only armed");
    }

    #[test]
    fn an_event_is_read_once() {
        let registers = Registers::new(Line::default());
        registers.raise(Event::PowerButton).unwrap();
        registers.raise(Event::PowerButton).unwrap();
        assert_eq!(registers.line.0.get(), 2);
        assert_eq!(read_byte(&registers, layout::EVENT_STATUS_PORT), 1);
        assert_eq!(read_byte(&registers, layout::EVENT_STATUS_PORT), 0);
    }

    #[test]
    fn a_reset_forgets_what_was_pending() {
        let registers = Registers::new(Line::default());
        registers.raise(Event::PowerButton).unwrap();
        registers.reset();
        assert_eq!(read_byte(&registers, layout::EVENT_STATUS_PORT), 0);
    }

    #[test]
    fn every_event_has_a_bit_of_its_own() {
        let all = Event::ALL.iter().fold(0u8, |all, event| {
            assert_eq!(event.mask().count_ones(), 1);
            assert_eq!(all & event.mask(), 0);
            all | event.mask()
        });
        assert_eq!(all.count_ones() as usize, Event::ALL.len());
    }

    proptest! {
        #[test]
        fn no_access_is_refused_or_answered_beyond_its_size(
            port: u16, mut data in proptest::collection::vec(any::<u8>(), 0..=8), write: bool,
        ) {
            let registers = Registers::new(Line::default());
            if write {
                let request = registers.write(port, &data);
                prop_assert!(request.is_none() || Registers::<Line>::claims(port));
            } else {
                registers.read(port, &mut data);
            }
        }
    }
}
