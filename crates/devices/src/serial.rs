//! COM1, a 16550: the registers are `vm-superio`'s; what the guest prints goes into a bounded ring that
//! the event loop drains, and what people type waits in a FIFO of 64 bytes.
//!
//! Invariant: no register access blocks on whoever reads the console, and what nobody reads takes
//! [`ConsoleOutput`]'s capacity and no more.

use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use vm_superio::{
    Serial as Uart, Trigger,
    serial::{Error, SerialEvents},
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use serde::{Deserialize, Serialize};
use vm_superio::SerialState;

use crate::{
    console::ConsoleOutput,
    state::{BadState, Hex},
};

/// The serial port. Any thread may call it.
pub struct Serial {
    wiring: Wiring,
    uart: Mutex<Uart<Line, Room, Output>>,
}

/// The port in a snapshot.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Saved {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    /// What was typed and not read.
    typed: Hex,
}

macro_rules! both_ways {
    ($($field:ident),+) => {
        impl From<SerialState> for Saved {
            fn from(state: SerialState) -> Self {
                let SerialState { $($field,)+ in_buffer } = state;
                Self { $($field,)+ typed: Hex(in_buffer) }
            }
        }

        impl From<Saved> for SerialState {
            fn from(saved: Saved) -> Self {
                let Saved { $($field,)+ typed } = saved;
                Self { $($field,)+ in_buffer: typed.0 }
            }
        }
    };
}

both_ways!(
    baud_divisor_low,
    baud_divisor_high,
    interrupt_enable,
    interrupt_identification,
    line_control,
    line_status,
    modem_control,
    modem_status,
    scratch
);

/// What a reset keeps.
#[derive(Clone)]
struct Wiring {
    line: Line,
    room: Room,
    output: Output,
}

impl Wiring {
    fn uart(&self, state: &SerialState) -> Result<Uart<Line, Room, Output>, Error<io::Error>> {
        let Self { line, room, output } = self.clone();
        Uart::from_state(state, line, room, output)
    }
}

impl Serial {
    /// A port that prints to `output`.
    ///
    /// # Errors
    /// The host is out of descriptors or memory.
    pub fn new(output: Arc<ConsoleOutput>) -> io::Result<Self> {
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        let room = Room { eventfd: eventfd()?, wanted: Arc::default() };
        let wiring = Wiring { line: Line(eventfd()?), room, output: Output(output) };
        let uart = wiring.uart(&SerialState::default()).map_err(io::Error::other)?;
        Ok(Self { wiring, uart: Mutex::new(uart) })
    }

    /// Written when the port's interrupt (IRQ 4) has to be raised, one edge each.
    pub fn interrupt(&self) -> &EventFd {
        &self.wiring.line.0
    }

    /// Written when [`Self::enqueue`] has room again after it took less than it was given.
    pub fn room(&self) -> &EventFd {
        &self.wiring.room.eventfd
    }

    /// The guest reads a register, 0 to 7.
    pub fn read(&self, offset: u8) -> u8 {
        let mut uart = self.lock();
        let value = uart.read(offset);
        if offset == INTERRUPT_IDENTIFICATION && value & NO_INTERRUPT != 0 && is_receiving(&mut uart) {
            return value & !NO_INTERRUPT | RECEIVED;
        }
        value
    }

    /// The guest writes a register, 0 to 7.
    pub fn write(&self, offset: u8, value: u8) {
        // Can fail only where the interrupt's eventfd is full: then there is an interrupt.
        let _ = self.lock().write(offset, value);
        if offset == MODEM_CONTROL {
            // While the port loops back it takes nothing from outside; now it may.
            self.wiring.room.in_buffer_empty();
        }
    }

    /// Someone types. Returns how many bytes were taken, the first ones; the rest can be offered again
    /// when [`Self::room`] says so.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut uart = self.lock();
        let taken = uart.enqueue_raw_bytes(bytes).unwrap_or(0);
        if taken < bytes.len() {
            // Still under the lock, so that the guest cannot make room unnoticed.
            self.wiring.room.wanted.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// As born; what was typed and not read is lost. What was printed stays to be read.
    pub fn reset(&self) {
        // The default state is one that the UART takes.
        if let Ok(new) = self.wiring.uart(&SerialState::default()) {
            *self.lock() = new;
        }
        self.wiring.room.in_buffer_empty();
    }

    /// The registers and what was typed, for a snapshot.
    pub fn save(&self) -> Saved {
        self.lock().state().into()
    }

    /// The registers as they were.
    ///
    /// # Errors
    /// The state is none that the port can be in.
    pub fn restore(&self, saved: Saved) -> Result<(), BadState> {
        let uart = self.wiring.uart(&saved.into());
        *self.lock() = uart.map_err(|_| BadState("more was typed than the serial port holds"))?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Uart<Line, Room, Output>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether what was typed waits, and the guest wants to be interrupted for it. A 16550 says so for as
/// long as it is true; `vm-superio` takes it back with the first byte that is read. A guest that stops
/// reading half-way to look again (Linux does so after 256 bytes) would take the port for idle, and wait
/// for the next key.
fn is_receiving(uart: &mut Uart<Line, Room, Output>) -> bool {
    let divisor = uart.read(LINE_CONTROL) & DIVISOR_LATCH != 0;
    !divisor && uart.read(INTERRUPT_ENABLE) & 1 != 0 && uart.read(LINE_STATUS) & 1 != 0
}

/// The interrupt line.
#[derive(Clone)]
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the event loop that the guest has read what was typed, if the loop has more.
#[derive(Clone)]
struct Room {
    eventfd: Arc<EventFd>,
    wanted: Arc<AtomicBool>,
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if self.wanted.swap(false, Ordering::Relaxed) {
            // Fails only where it is full: then the loop is about to hear of it.
            let _ = self.eventfd.write(1);
        }
    }
}

#[derive(Clone)]
struct Output(Arc<ConsoleOutput>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// Offsets of registers.
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_IDENTIFICATION: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;

/// Line control: offsets 0 and 1 are the divisor's.
const DIVISOR_LATCH: u8 = 1 << 7;
// Interrupt identification.
const NO_INTERRUPT: u8 = 1;
const RECEIVED: u8 = 4;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::{any, prop, proptest};

    use super::Serial;
    use crate::console::ConsoleOutput;

    fn serial(capacity: usize) -> (Serial, Arc<ConsoleOutput>) {
        let output = Arc::new(ConsoleOutput::new(capacity).unwrap());
        (Serial::new(Arc::clone(&output)).unwrap(), output)
    }

    #[test]
    fn prints() {
        let (serial, output) = serial(16);
        b"hello".iter().for_each(|&byte| serial.write(0, byte));
        let mut printed = Vec::new();
        output.drain(&mut printed).unwrap();
        assert_eq!(printed, b"hello");
        assert_eq!(serial.read(5) & 0x60, 0x60, "ready for more");
    }

    #[test]
    fn typing_waits_for_room() {
        let (serial, _) = serial(16);
        serial.write(1, 1);
        let text = [b'x'; 100];
        assert_eq!(serial.enqueue(&text), 64);
        assert_eq!(serial.interrupt().read().unwrap(), 1);
        assert_eq!(serial.enqueue(&text[64..]), 0);
        for _ in 0..63 {
            assert_eq!(serial.read(0), b'x');
        }
        assert!(serial.room().read().is_err());
        assert_eq!(serial.read(0), b'x');
        assert_eq!(serial.room().read().unwrap(), 1);
        assert_eq!(serial.enqueue(&text[64..]), 36);
        (0..36).for_each(|_| assert_eq!(serial.read(0), b'x'));
        assert!(serial.room().read().is_err(), "all was taken: nobody waits");
    }

    #[test]
    fn what_was_typed_before_the_port_was_opened_is_told_when_it_is() {
        let (serial, _) = serial(16);
        assert_eq!(serial.enqueue(&[b'x'; 70]), 64);
        assert!(serial.interrupt().read().is_err(), "nobody wants to hear");
        serial.write(1, 1);
        assert_eq!(serial.interrupt().read().unwrap(), 1);
        assert_eq!(serial.read(2) & 0xf, 4);
    }

    #[test]
    fn bytes_that_still_wait_are_told_until_the_last_is_read() {
        let (serial, _) = serial(16);
        serial.write(1, 1);
        serial.enqueue(b"abc");
        for waiting in [true, true, true, false] {
            assert_eq!(serial.read(2) & 0xf, if waiting { 4 } else { 1 });
            serial.read(0);
        }
        serial.enqueue(b"d");
        serial.write(1, 0);
        serial.read(2);
        assert_eq!(serial.read(2) & 0xf, 1, "not asked for");
    }

    #[test]
    fn typing_waits_while_the_port_loops_back() {
        let (serial, _) = serial(16);
        serial.write(4, 0x10);
        assert_eq!(serial.enqueue(b"x"), 0);
        assert_eq!(serial.room().read().unwrap_or(0), 0);
        serial.write(4, 0x08);
        assert_eq!(serial.room().read().unwrap(), 1);
        assert_eq!(serial.enqueue(b"x"), 1);
    }

    #[test]
    fn reset_forgets_what_was_typed() {
        let (serial, output) = serial(16);
        serial.write(7, 0x55);
        serial.write(0, b'a');
        assert_eq!(serial.enqueue(&[b'x'; 65]), 64);
        let saved = serial.save();
        serial.reset();
        assert_eq!(serial.room().read().unwrap(), 1);
        assert_eq!(serial.read(7), 0);
        assert_eq!(serial.read(5) & 1, 0);
        assert_eq!(output.len(), 1);
        serial.restore(saved).unwrap();
        assert_eq!(serial.read(7), 0x55);
        assert_eq!(serial.read(0), b'x');
    }

    proptest! {
        #[test]
        fn no_access_panics(accesses in prop::collection::vec((any::<u8>(), any::<u8>(), any::<bool>()), 1..200)) {
            let (serial, output) = serial(8);
            for (offset, value, write) in accesses {
                if write { serial.write(offset % 10, value) } else { serial.read(offset % 10); }
                serial.enqueue(&[value; 7]);
                assert!(output.len() <= 8);
            }
        }
    }
}
