//! The configuration space of a function: a type 0 header, one memory BAR, and capabilities
//! (PCI Local Bus 3.0 chapter 6). Bytes, and which of their bits the guest may change.

use std::ops::Range;

use crate::state::{BadState, Hex};

/// What a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class code, subclass and programming interface, as 0xCCSSPP.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// Configuration space. The extended part, from byte 256, reads as zeros: no extended capabilities.
#[derive(Clone, Debug)]
pub struct Registers {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    born: [u8; LEN],
    /// Bytes of the BAR, a power of two; 0 without a BAR.
    bar_len: u64,
    /// Where the last capability's next pointer is, and the first byte that none uses.
    capabilities: (u16, u16),
}

impl Registers {
    /// A function without a BAR and without capabilities.
    pub fn new(ids: &Ids) -> Self {
        let mut registers = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            born: [0; LEN],
            bar_len: 0,
            capabilities: (CAPABILITIES, FIRST_CAPABILITY),
        };
        registers.put(VENDOR, &ids.vendor.to_le_bytes());
        registers.put(DEVICE, &ids.device.to_le_bytes());
        registers.put(REVISION, &(ids.class << 8 | u32::from(ids.revision)).to_le_bytes());
        registers.put(SUBSYSTEM_VENDOR, &ids.subsystem_vendor.to_le_bytes());
        registers.put(SUBSYSTEM, &ids.subsystem.to_le_bytes());
        registers.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_MASTER | COMMAND_QUIET).to_le_bytes());
        registers.allow(CACHE_LINE, &[0xff]);
        registers.allow(INTERRUPT_LINE, &[0xff]);
        registers
    }

    /// Adds BAR 0, 64 bits wide, memory, at `base`. `len` is a power of two from 16, and `base` a multiple
    /// of it; what is not is made so.
    #[must_use]
    pub fn with_bar(mut self, base: u64, len: u64) -> Self {
        let len = len.clamp(16, 1 << 40).next_power_of_two();
        let mask = !(len - 1);
        self.bar_len = len;
        self.put(BAR, &(base & mask | BAR_64_BIT).to_le_bytes());
        self.allow(BAR, &mask.to_le_bytes());
        self
    }

    /// Adds a capability: `body` is what follows its id and next pointer, `writable` the bits of it
    /// that the guest may change. Returns its offset, or none where there is no room for it.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u16> {
        let (link, at) = self.capabilities;
        let end = at.checked_add(2)?.checked_add(u16::try_from(body.len()).ok()?)?;
        let offset = u8::try_from(at).ok().filter(|_| usize::from(end) <= LEN)?;
        self.put(link, &[offset]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.capabilities = (at + 1, end.next_multiple_of(4));
        Some(offset.into())
    }

    /// The guest, or the function, reads.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        for (to, from) in data.iter_mut().zip(self.bytes.iter().skip(offset.into())) {
            *to = *from;
        }
    }

    /// The guest writes: bits that are not its to write stay as they are.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let bytes = self.bytes.iter_mut().zip(&self.writable).skip(offset.into());
        for ((byte, writable), new) in bytes.zip(data) {
            *byte = *byte & !writable | new & writable;
        }
    }

    /// The function writes what the guest may read, until [`Self::reset`].
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        for (byte, new) in self.bytes.iter_mut().skip(offset.into()).zip(data) {
            *byte = *new;
        }
    }

    /// The two bytes at `offset`.
    pub fn word(&self, offset: u16) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// The four bytes at `offset`.
    pub fn dword(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Where the BAR is, while the guest wants it to answer.
    pub fn region(&self) -> Option<Range<u64>> {
        let on = self.bar_len != 0 && self.word(COMMAND) & COMMAND_MEMORY != 0;
        let mut bytes = [0; 8];
        self.read(BAR, &mut bytes);
        let start = u64::from_le_bytes(bytes) & !(self.bar_len.max(1) - 1);
        // A BAR of all ones, as while its size is asked for, ends beyond the last address: no region.
        let end = start.checked_add(self.bar_len)?;
        on.then_some(start..end)
    }

    /// As born.
    pub fn reset(&mut self) {
        let Self { bytes, writable: _, born, bar_len: _, capabilities: _ } = self;
        *bytes = *born;
    }

    /// What the guest reads.
    pub fn save(&self) -> Hex {
        Hex(self.bytes.to_vec())
    }

    /// What the guest has read and set before.
    ///
    /// # Errors
    /// What it read is not what this function says of itself.
    pub fn restore(&mut self, saved: &Hex) -> Result<(), BadState> {
        let differs = BadState("its configuration space is another device's");
        let saved: &[u8; LEN] = saved.0.as_slice().try_into().map_err(|_| differs)?;
        let fixed = |bytes: &[u8; LEN]| -> Vec<u8> {
            bytes.iter().zip(&self.writable).map(|(byte, writable)| byte & !writable).collect()
        };
        if fixed(saved) != fixed(&self.born) {
            return Err(differs);
        }
        self.bytes = *saved;
        Ok(())
    }

    /// Sets bytes of a space that is being made.
    fn put(&mut self, offset: u16, data: &[u8]) {
        for ((byte, born), new) in self.bytes.iter_mut().zip(&mut self.born).skip(offset.into()).zip(data) {
            (*byte, *born) = (*new, *new);
        }
    }

    fn allow(&mut self, offset: u16, bits: &[u8]) {
        for (byte, new) in self.writable.iter_mut().skip(offset.into()).zip(bits) {
            *byte = *new;
        }
    }
}

/// Without the extended part.
const LEN: usize = 256;

// Type 0 header.
const VENDOR: u16 = 0x00;
const DEVICE: u16 = 0x02;
const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const REVISION: u16 = 0x08;
const CACHE_LINE: u16 = 0x0c;
const BAR: u16 = 0x10;
const SUBSYSTEM_VENDOR: u16 = 0x2c;
const SUBSYSTEM: u16 = 0x2e;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT_LINE: u16 = 0x3c;
const FIRST_CAPABILITY: u16 = 0x40;

/// Answer to memory accesses.
const COMMAND_MEMORY: u16 = 1 << 1;
/// Bus master: devices here do not look at it, drivers want it kept.
const COMMAND_MASTER: u16 = 1 << 2;
/// INTx off: there is none.
const COMMAND_QUIET: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const BAR_64_BIT: u64 = 0b100;

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::{Ids, Registers};

    fn registers() -> Registers {
        let ids = Ids {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_80_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1042,
        };
        Registers::new(&ids).with_bar(0x40_0000_0000, 0x8000)
    }

    #[test]
    fn a_bar_is_sized_as_linux_does_it() {
        let mut registers = registers();
        assert_eq!(registers.dword(0x08), 0x0180_0001);
        assert_eq!(registers.region(), None);
        let (low, high) = (registers.dword(0x10), registers.dword(0x14));
        assert_eq!((low, high), (0x0000_0004, 0x40));
        registers.write(0x10, &[0xff; 4]);
        registers.write(0x14, &[0xff; 4]);
        assert_eq!((registers.dword(0x10), registers.dword(0x14)), (0xffff_8004, 0xffff_ffff));
        registers.write(4, &[2, 0]);
        assert_eq!(registers.region(), None, "a region that ends beyond the last address");
        registers.write(0x10, &low.to_le_bytes());
        registers.write(0x14, &high.to_le_bytes());
        assert_eq!(registers.region(), Some(0x40_0000_0000..0x40_0000_8000));
        // Other BARs are not there.
        registers.write(0x18, &[0xff; 4]);
        assert_eq!(registers.dword(0x18), 0);
        registers.reset();
        assert_eq!(registers.region(), None);
    }

    #[test]
    fn only_writable_bits_change() {
        let mut registers = registers();
        registers.write(0, &[0xff; 256]);
        assert_eq!(registers.dword(0), 0x1042_1af4);
        assert_eq!(registers.word(4), 0x0406);
        assert_eq!(registers.word(6), 0);
        assert_eq!(registers.word(0x3c), 0x00ff, "interrupt line is the guest's, there is no pin");
        registers.write(0xffff, &[1]);
        registers.write(255, &[1; 8]);
    }

    #[test]
    fn capabilities_are_linked() {
        let mut registers = registers();
        let first = registers.add_capability(0x11, &[1, 2, 3], &[0, 0xff]).unwrap();
        let second = registers.add_capability(0x09, &[9; 14], &[]).unwrap();
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(registers.word(6), 0x10);
        assert_eq!(registers.dword(0x34) & 0xff, 0x40);
        assert_eq!(registers.dword(0x40), 0x0201_4811);
        assert_eq!(registers.word(0x48), 0x0009);
        registers.write(0x40, &[0xff; 4]);
        assert_eq!(registers.dword(0x40), 0xff01_4811);
        assert_eq!(registers.add_capability(0x09, &[0; 200], &[]), None);
    }
}
