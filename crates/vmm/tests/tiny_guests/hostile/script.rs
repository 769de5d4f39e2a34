//! What a hostile guest does, as data: entries that [`guests::player`] plays one after another.

use crate::{guests, machine::elf};

/// A script under way of being written.
#[derive(Clone, Default)]
pub(crate) struct Script(Vec<u8>);

/// The width of an access, bytes.
#[derive(Clone, Copy)]
pub(crate) enum Width {
    Byte = 1,
    Word = 2,
    Double = 4,
    Quad = 8,
}

#[derive(Clone, Copy)]
enum Deed {
    Halt = 0,
    WriteMemory = 1,
    ReadMemory = 2,
    WritePort = 3,
    ReadPort = 4,
    Wait = 5,
    ReadString = 6,
    WriteString = 7,
}

/// One access, or many of one kind.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    pub(crate) width: Width,
    /// A guest-physical address below 4 GiB, or a port.
    pub(crate) at: u64,
    /// Written, where something is.
    pub(crate) value: u64,
    pub(crate) times: u64,
    /// From one to the next.
    pub(crate) step: u64,
}

/// One access.
pub(crate) fn once(width: Width, at: u64, value: u64) -> Access {
    Access { width, at, value, times: 1, step: 0 }
}

impl Script {
    pub(crate) fn write(&mut self, access: Access) {
        self.deed(Deed::WriteMemory, access);
    }

    pub(crate) fn read(&mut self, access: Access) {
        self.deed(Deed::ReadMemory, access);
    }

    pub(crate) fn write_port(&mut self, access: Access) {
        self.deed(Deed::WritePort, access);
    }

    pub(crate) fn read_port(&mut self, access: Access) {
        self.deed(Deed::ReadPort, access);
    }

    /// So many reads of a port in one instruction, to the address that the value is; then as many writes.
    pub(crate) fn strings(&mut self, access: Access) {
        self.deed(Deed::ReadString, access);
        self.deed(Deed::WriteString, access);
    }

    /// Until the bits of `mask` in the four bytes there are `value`, or until it has looked long enough.
    pub(crate) fn wait(&mut self, at: u64, mask: u32, value: u32) {
        let both = u64::from(mask) << 32 | u64::from(value);
        self.deed(Deed::Wait, Access { width: Width::Double, at, value: both, times: LOOKS, step: 0 });
    }

    /// Until the bits of `mask` in the four bytes there are `value`, however long that takes.
    pub(crate) fn wait_for_ever(&mut self, at: u64, mask: u32, value: u32) {
        let both = u64::from(mask) << 32 | u64::from(value);
        self.deed(Deed::Wait, Access { width: Width::Double, at, value: both, times: u64::MAX, step: 0 });
    }

    /// Prints a byte of memory.
    pub(crate) fn print_from(&mut self, address: u64) {
        self.deed(Deed::WriteString, once(Width::Byte, 0x3f8, address));
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            self.write(once(Width::Byte, at, (*byte).into()));
        }
    }

    /// On the console, which may have been written to as well: it is made to print again.
    pub(crate) fn sign_of_life(&mut self) {
        for (register, value) in [(0x3fb, 3), (0x3f9, 0), (0x3fc, 0), (0x3f8, b'-'.into())] {
            self.write_port(once(Width::Byte, register, value));
        }
    }

    /// A kernel that does all of it, says `.` on the console, and halts for ever.
    pub(crate) fn kernel(mut self) -> Vec<u8> {
        self.write_port(once(Width::Byte, 0x3f8, b'.'.into()));
        self.deed(Deed::Halt, once(Width::Byte, 0, 0));
        elf(&[guests::player(), &self.0].concat())
    }

    /// A kernel that does all of it and asks for a reset, each time.
    pub(crate) fn kernel_that_resets(mut self) -> Vec<u8> {
        self.write_port(once(Width::Byte, 0xcf9, 6));
        self.deed(Deed::Halt, once(Width::Byte, 0, 0));
        elf(&[guests::player(), &self.0].concat())
    }

    fn deed(&mut self, deed: Deed, access: Access) {
        let Access { width, at, value, times, step } = access;
        let words = [deed as u64, width as u64, at, value, times, step];
        self.0.extend(words.map(u64::to_le_bytes).concat());
    }
}

/// Longer than anything takes that answers at all.
const LOOKS: u64 = 200_000;
