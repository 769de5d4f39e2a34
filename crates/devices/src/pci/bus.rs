//! Bus 0 of segment 0: a host bridge in slot 0, and 31 slots for functions.
//!
//! Locks: the table of slots is held for moments only and never while a function is called; a
//! function is held while it is called, and may then be followed by the table, never the other way.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use super::{
    FunctionState, PciFunction,
    registers::{Ids, Registers},
};
use crate::state::BadState;

/// Slots of the bus. Slot 0 is the host bridge's.
pub const SLOTS: u8 = 32;
/// Bytes of ECAM that one bus takes (PCI Express 7.2.2): 4 KiB for each of 256 functions.
pub const ECAM_LEN: u64 = 1 << 20;

/// The bus. Every method may be called on any thread.
///
/// ```text
///   vCPU ──config_read/write──► slot ──► function            BAR moved, MEM on or off: ─┐
///   vCPU ──mmio_read/write──► where BARs are now ──► function ◄─────────────────────────┘
/// ```
pub struct PciBus {
    table: RwLock<Table>,
}

type Shared = Arc<Mutex<dyn PciFunction>>;

#[derive(Default)]
struct Table {
    slots: [Option<Slot>; SLOTS as usize],
}

struct Slot {
    function: Shared,
    /// Where it answers, as of its last change. The function knows better: ask it again under its lock.
    region: Option<Range<u64>>,
}

/// Why a function cannot be put into a slot.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// There is one.
    #[error("PCI slot {0} is taken")]
    Taken(u8),
    /// There is no such slot.
    #[error("PCI slot {0} is not one of 0 to 31")]
    NoSuchSlot(u8),
}

/// A function cannot be as it was saved.
#[derive(Debug, thiserror::Error)]
#[error("the device in PCI slot {slot}")]
pub struct RestoreError {
    /// Its slot.
    pub slot: u8,
    /// What does not fit.
    pub source: BadState,
}

impl PciBus {
    /// A bus with nothing but its host bridge.
    pub fn new() -> Self {
        let mut table = Table::default();
        if let Some(slot) = table.slots.first_mut() {
            *slot = Some(Slot { function: Arc::new(Mutex::new(HostBridge::new())), region: None });
        }
        Self { table: RwLock::new(table) }
    }

    /// Puts a function into a slot, as function 0 of its device.
    ///
    /// # Errors
    /// The slot is taken, or there is no such slot.
    pub fn insert(&self, slot: u8, function: impl PciFunction + 'static) -> Result<(), InsertError> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        match table.slots.get_mut(usize::from(slot)) {
            None => Err(InsertError::NoSuchSlot(slot)),
            Some(Some(_)) => Err(InsertError::Taken(slot)),
            Some(empty) => {
                let region = function.region();
                *empty = Some(Slot { function: Arc::new(Mutex::new(function)), region });
                Ok(())
            }
        }
    }

    /// Takes a function out of its slot and makes it as born, so that nothing of the host's is held for
    /// it any more. The host bridge stays. Whether there was one.
    pub fn remove(&self, slot: u8) -> bool {
        let taken = {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            table.slots.get_mut(usize::from(slot)).filter(|_| slot != 0).and_then(Option::take)
        };
        let Some(slot) = taken else { return false };
        lock(&slot.function).reset();
        true
    }

    /// A vCPU reads the ECAM window. A function that is not there reads as all ones.
    pub fn config_read(&self, ecam_offset: u64, data: &mut [u8]) {
        let (slot, register) = place(ecam_offset);
        match slot.and_then(|slot| self.function(slot)) {
            Some(function) => lock(&function).config_read(register, data),
            None => data.fill(0xff),
        }
    }

    /// A vCPU writes the ECAM window.
    pub fn config_write(&self, ecam_offset: u64, data: &[u8]) {
        let (Some(slot), register) = place(ecam_offset) else { return };
        let Some(shared) = self.function(slot) else { return };
        let mut function = lock(&shared);
        let before = function.region();
        function.config_write(register, data);
        let after = function.region();
        if before != after {
            // Still under the function's lock, so that the table hears of changes in their order.
            self.moved(slot, &shared, after);
        }
    }

    /// A vCPU reads guest-physical memory that is no RAM. False where no function answers.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> bool {
        self.at(address, |function, offset| function.mmio_read(offset, data))
    }

    /// A vCPU writes guest-physical memory that is no RAM. False where no function answers.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> bool {
        self.at(address, |function, offset| function.mmio_write(offset, data))
    }

    /// Everything as born. The vCPUs do not run meanwhile.
    pub fn reset(&self) {
        for slot in 0..SLOTS {
            if let Some(shared) = self.function(slot) {
                let mut function = lock(&shared);
                function.reset();
                self.moved(slot, &shared, function.region());
            }
        }
    }

    /// Every function for a snapshot, by slot.
    pub fn save(&self) -> BTreeMap<u8, FunctionState> {
        (0..SLOTS).filter_map(|slot| Some((slot, lock(&self.function(slot)?).save()))).collect()
    }

    /// Every function as it was saved.
    ///
    /// # Errors
    /// The first slot whose function cannot be restored, or is not there, or was not.
    pub fn restore(&self, saved: &BTreeMap<u8, FunctionState>) -> Result<(), RestoreError> {
        if let Some(&slot) = saved.keys().find(|slot| **slot >= SLOTS) {
            return Err(RestoreError { slot, source: BadState("there is no such slot") });
        }
        for slot in 0..SLOTS {
            let bad = |source| RestoreError { slot, source };
            match (self.function(slot), saved.get(&slot)) {
                (None, None) => {}
                (Some(_), None) => return Err(bad(BadState("there is a device, and there was none"))),
                (None, Some(_)) => return Err(bad(BadState("there was a device, and there is none"))),
                (Some(shared), Some(saved)) => {
                    let mut function = lock(&shared);
                    function.restore(saved).map_err(bad)?;
                    self.moved(slot, &shared, function.region());
                }
            }
        }
        Ok(())
    }

    /// The function in a slot.
    fn function(&self, slot: u8) -> Option<Shared> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&table.slots.get(usize::from(slot))?.as_ref()?.function))
    }

    fn moved(&self, slot: u8, function: &Shared, region: Option<Range<u64>>) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(slot)) = table.slots.get_mut(usize::from(slot))
            && Arc::ptr_eq(&slot.function, function)
        {
            slot.region = region;
        }
    }

    fn at(&self, address: u64, access: impl FnOnce(&mut dyn PciFunction, u64)) -> bool {
        let found = {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            let mut slots = table.slots.iter().flatten();
            let here = |slot: &&Slot| slot.region.as_ref().is_some_and(|region| region.contains(&address));
            slots.find(here).map(|slot| Arc::clone(&slot.function))
        };
        let Some(function) = found else { return false };
        let mut function = lock(&function);
        // It may have moved since.
        let Some(region) = function.region().filter(|region| region.contains(&address)) else { return false };
        access(&mut *function, address - region.start);
        true
    }
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

/// The slot and register of an ECAM offset; no slot for other buses and for functions but 0.
fn place(ecam_offset: u64) -> (Option<u8>, u16) {
    let [low, high, bus, ..] = ecam_offset.to_le_bytes();
    let register = u16::from_le_bytes([low, high & 0x0f]);
    // bus 27:20, device 19:15, function 14:12, register 11:0
    let device = (bus & 0x0f) << 1 | high >> 7;
    let function = high >> 4 & 7;
    let here = ecam_offset < ECAM_LEN && function == 0;
    (here.then_some(device), register)
}

fn lock(function: &Shared) -> MutexGuard<'_, dyn PciFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What makes it a bus: nothing but its ids, for which Linux has no quirk.
struct HostBridge {
    registers: Registers,
}

impl HostBridge {
    fn new() -> Self {
        // QEMU's generic PCI Express host bridge.
        let ids = Ids {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_00_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        Self { registers: Registers::new(&ids) }
    }
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.registers.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.registers.write(offset, data);
    }

    fn region(&self) -> Option<Range<u64>> {
        None
    }

    fn mmio_read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&mut self, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self) {
        let Self { registers } = self;
        registers.reset();
    }

    fn save(&self) -> FunctionState {
        FunctionState { registers: self.registers.save(), virtio: None }
    }

    fn restore(&mut self, saved: &FunctionState) -> Result<(), BadState> {
        self.registers.restore(&saved.registers)
    }
}

#[cfg(test)]
mod tests;
