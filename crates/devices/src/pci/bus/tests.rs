use std::ops::Range;

use super::{InsertError, PciBus};
use crate::{
    pci::{
        FunctionState, PciFunction,
        registers::{Ids, Registers},
    },
    state::BadState,
};

/// Reads as its number.
struct Plain {
    registers: Registers,
    number: u8,
}

impl Plain {
    fn new(number: u8, bar: u64) -> Self {
        let ids = Ids {
            vendor: 0x1234,
            device: number.into(),
            revision: 0,
            class: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        };
        Self { registers: Registers::new(&ids).with_bar(bar, 0x1000), number }
    }
}

impl PciFunction for Plain {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.registers.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.registers.write(offset, data);
    }

    fn region(&self) -> Option<Range<u64>> {
        self.registers.region()
    }

    fn mmio_read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.number);
    }

    fn mmio_write(&mut self, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self) {
        self.registers.reset();
    }

    fn save(&self) -> FunctionState {
        FunctionState { registers: self.registers.save(), virtio: None }
    }

    fn restore(&mut self, saved: &FunctionState) -> Result<(), BadState> {
        self.registers.restore(&saved.registers)
    }
}

fn dword(bus: &PciBus, offset: u64) -> u32 {
    let mut data = [0x55; 4];
    bus.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn at(bus: &PciBus, address: u64) -> Option<u8> {
    let mut data = [0];
    bus.mmio_read(address, &mut data).then_some(data[0])
}

#[test]
fn a_scan_finds_what_is_there() {
    let bus = PciBus::new();
    bus.insert(31, Plain::new(7, 0x1000_0000)).unwrap();
    for device in 0..32 {
        for function in 0..8 {
            let id = dword(&bus, device << 15 | function << 12);
            match (device, function) {
                (0, 0) => assert_eq!(id, 0x0008_1b36),
                (31, 0) => assert_eq!(id, 0x0007_1234),
                _ => assert_eq!(id, u32::MAX, "{device}.{function}"),
            }
        }
    }
    assert_eq!(dword(&bus, 8) >> 8, 0x06_00_00, "host bridge");
    assert_eq!(dword(&bus, 0xc), 0, "header type 0, one function");
    assert_eq!(dword(&bus, 1 << 20), u32::MAX, "bus 1");
    assert_eq!(dword(&bus, u64::MAX), u32::MAX);
    assert_eq!(dword(&bus, 0x100), 0, "no extended capabilities");
    assert_eq!(dword(&bus, 0xffe), 0);
}

#[test]
fn slots_are_taken_once_and_can_be_emptied() {
    let bus = PciBus::new();
    assert!(matches!(bus.insert(0, Plain::new(1, 0)), Err(InsertError::Taken(0))));
    assert!(matches!(bus.insert(32, Plain::new(1, 0)), Err(InsertError::NoSuchSlot(32))));
    bus.insert(5, Plain::new(1, 0x1000_0000)).unwrap();
    assert!(matches!(bus.insert(5, Plain::new(1, 0)), Err(InsertError::Taken(5))));
    bus.config_write(5 << 15 | 4, &[2]);
    assert_eq!(at(&bus, 0x1000_0000), Some(1));
    assert!(bus.remove(5));
    assert_eq!(at(&bus, 0x1000_0000), None);
    assert!(!bus.remove(5));
    assert!(!bus.remove(0), "the host bridge stays");
    assert!(!bus.remove(200));
}

#[test]
fn memory_follows_the_bars() {
    let bus = PciBus::new();
    bus.insert(1, Plain::new(1, 0x1000_0000)).unwrap();
    bus.insert(2, Plain::new(2, 0x1000_1000)).unwrap();
    assert_eq!(at(&bus, 0x1000_0000), None, "off");
    bus.config_write(1 << 15 | 4, &[2, 0]);
    bus.config_write(2 << 15 | 4, &[2, 0]);
    assert_eq!(
        [0x0fff_ffff, 0x1000_0fff, 0x1000_1000, 0x1000_2000].map(|a| at(&bus, a)),
        [None, Some(1), Some(2), None]
    );
    // Both at one place: the first slot answers.
    bus.config_write(2 << 15 | 0x10, &0x1000_0000u32.to_le_bytes());
    assert_eq!([0x1000_0000, 0x1000_1000].map(|a| at(&bus, a)), [Some(1), None]);
    bus.config_write(1 << 15 | 0x14, &[1]);
    assert_eq!([0x1000_0000, 0x1_1000_0000].map(|a| at(&bus, a)), [Some(2), Some(1)]);
    bus.config_write(1 << 15 | 4, &[0]);
    assert_eq!(at(&bus, 0x1_1000_0000), None);
    bus.reset();
    assert_eq!(at(&bus, 0x1000_0000), None);
    bus.config_write(2 << 15 | 4, &[2, 0]);
    assert_eq!(at(&bus, 0x1000_1000), Some(2), "where it was born");
}

#[test]
fn every_function_comes_back_where_it_was() {
    let bus = PciBus::new();
    bus.insert(3, Plain::new(7, 0x1000_0000)).unwrap();
    bus.config_write(3 << 15 | 0x10, &0x2000_0000_u32.to_le_bytes());
    bus.config_write(3 << 15 | 4, &[2]);
    let saved = bus.save();
    let other = PciBus::new();
    other.insert(3, Plain::new(7, 0x1000_0000)).unwrap();
    other.restore(&saved).unwrap();
    assert_eq!((at(&other, 0x2000_0000), at(&other, 0x1000_0000)), (Some(7), None));
    assert_eq!(other.save(), saved);
}

#[test]
fn what_was_saved_of_another_bus_is_refused() {
    let bus = |slot, number| {
        let bus = PciBus::new();
        bus.insert(slot, Plain::new(number, 0x1000_0000)).unwrap();
        bus
    };
    let saved = bus(3, 7).save();
    for (other, text) in [(bus(4, 7), "there was a device"), (bus(3, 8), "another device's")] {
        let error = other.restore(&saved).unwrap_err();
        assert_eq!(error.slot, 3);
        assert!(error.source.0.contains(text), "{}", error.source);
    }
    let mut beyond = saved.clone();
    beyond.insert(32, beyond[&3].clone());
    assert_eq!(bus(3, 7).restore(&beyond).unwrap_err().slot, 32);
    let mut short = saved;
    short.get_mut(&3).unwrap().registers.0.pop();
    bus(3, 7).restore(&short).unwrap_err();
}
