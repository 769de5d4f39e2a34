//! pvpanic, the PCI one (QEMU's `docs/specs/pvpanic`, 1b36:0011): a guest that panics writes a bit to
//! a register of one byte.

use std::ops::Range;

use crate::{
    pci::{
        FunctionState, PciFunction,
        registers::{Ids, Registers},
    },
    state::BadState,
};

/// What the guest says of its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Panic {
    /// It has panicked and is about to do what it does then.
    Panicked,
    /// It has panicked and runs its crash kernel, which may yet write a dump.
    CrashLoaded,
}

/// Who is told. Called on a vCPU thread with the function locked: it must not call the bus.
pub trait OnPanic: Send {
    /// The guest has written the register.
    fn on_panic(&mut self, panic: Panic);
}

/// The function.
pub struct Pvpanic<P: OnPanic> {
    effect: P,
    registers: Registers,
}

/// Bytes of BAR 0; its base is a multiple of them.
pub const BAR_LEN: u64 = 0x1000;

impl<P: OnPanic> Pvpanic<P> {
    /// The function, with BAR 0 at `bar`, a multiple of [`BAR_LEN`].
    pub fn new(bar: u64, effect: P) -> Self {
        let ids = Ids {
            vendor: 0x1b36,
            device: 0x0011,
            revision: 1,
            class: 0x08_80_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        Self { effect, registers: Registers::new(&ids).with_bar(bar, BAR_LEN) }
    }
}

impl<P: OnPanic> PciFunction for Pvpanic<P> {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.registers.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.registers.write(offset, data);
    }

    fn region(&self) -> Option<Range<u64>> {
        self.registers.region()
    }

    fn mmio_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(events)) = (offset, data.first_mut()) {
            *events = PANICKED | CRASH_LOADED;
        }
    }

    fn mmio_write(&mut self, offset: u64, data: &[u8]) {
        let (0, Some(events)) = (offset, data.first()) else { return };
        if events & PANICKED != 0 {
            self.effect.on_panic(Panic::Panicked);
        } else if events & CRASH_LOADED != 0 {
            self.effect.on_panic(Panic::CrashLoaded);
        }
    }

    fn reset(&mut self) {
        let Self { effect: _, registers } = self;
        registers.reset();
    }

    fn save(&self) -> FunctionState {
        FunctionState { registers: self.registers.save(), virtio: None }
    }

    fn restore(&mut self, saved: &FunctionState) -> Result<(), BadState> {
        self.registers.restore(&saved.registers)
    }
}

const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::{OnPanic, Panic, Pvpanic};
    use crate::pci::PciBus;

    impl OnPanic for Sender<Panic> {
        fn on_panic(&mut self, panic: Panic) {
            self.send(panic).unwrap();
        }
    }

    #[test]
    fn a_panic_is_heard() {
        let (sender, receiver) = channel();
        let bus = PciBus::new();
        bus.insert(3, Pvpanic::new(0xe000_0000, sender)).unwrap();
        let mut byte = [0];
        assert!(!bus.mmio_read(0xe000_0000, &mut byte), "off until COMMAND.MEM");
        bus.config_write(3 << 15 | 4, &[2, 0]);
        assert!(bus.mmio_read(0xe000_0000, &mut byte));
        assert_eq!(byte, [3]);
        assert!(bus.mmio_write(0xe000_0000, &[2]));
        assert!(bus.mmio_write(0xe000_0000, &[1, 0, 0, 0]));
        assert!(bus.mmio_write(0xe000_0001, &[1]));
        assert!(bus.mmio_write(0xe000_0000, &[0]));
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [Panic::CrashLoaded, Panic::Panicked]);
        bus.reset();
        assert!(!bus.mmio_write(0xe000_0000, &[1]));
    }
}
