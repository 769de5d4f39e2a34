//! A virtio driver that a script plays: as far as it goes, an honest one.

use super::script::{
    Access, Script,
    Width::{Byte, Double, Quad, Word},
    once,
};

/// The driver of the function in one PCI slot.
pub(crate) struct Driver {
    slot: u8,
    pub(crate) bar: u64,
    next_available: [u16; 3],
}

/// A descriptor.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Entries of every queue.
pub(crate) const SIZE: u16 = 64;
/// Where a script's buffers may be.
pub(crate) const BUFFERS: u64 = 0x180_0000;
/// The first address that is no memory.
pub(crate) const MEMORY_END: u64 = 64 << 20;
/// Of configuration space.
pub(crate) const ECAM: u64 = 0xe000_0000;

impl Driver {
    pub(crate) fn new(slot: u8) -> Self {
        Self { slot, bar: 0xc100_0000 + u64::from(slot) * 0x1_0000, next_available: [0; 3] }
    }

    /// Where a register of configuration space is.
    pub(crate) fn config(&self, register: u64) -> u64 {
        ECAM + (u64::from(self.slot) << 15) + register
    }

    /// Puts the function where the driver wants it.
    pub(crate) fn map(&self, script: &mut Script) {
        self.move_to(script, self.bar);
        script.write(once(Word, self.config(4), 6));
    }

    pub(crate) fn move_to(&self, script: &mut Script, address: u64) {
        script.write(once(Double, self.config(0x10), address & 0xffff_ffff));
        script.write(once(Double, self.config(0x14), address >> 32));
    }

    /// From nothing to a device at work with these queues.
    pub(crate) fn start(&mut self, script: &mut Script, queues: &[u16]) {
        self.map(script);
        self.restart(script, queues);
    }

    /// The same, of a function that is there.
    pub(crate) fn restart(&mut self, script: &mut Script, queues: &[u16]) {
        self.next_available = [0; 3];
        self.reset(script);
        script.write(once(Byte, self.bar + 20, 1));
        script.write(once(Byte, self.bar + 20, 3));
        // VIRTIO_F_VERSION_1, and indirect descriptors.
        for (half, features) in [(1, 1), (0, 1 << 28)] {
            script.write(once(Double, self.bar + 8, half));
            script.write(once(Double, self.bar + 12, features));
        }
        script.write(once(Byte, self.bar + 20, 0xb));
        for &queue in queues {
            let [descriptors, available, used] = self.ring(queue);
            for at in [available, used] {
                script.write(Access { width: Quad, at, value: 0, times: u64::from(SIZE) + 2, step: 8 });
            }
            self.set_up(script, queue, [descriptors, available, used]);
        }
        script.write(once(Byte, self.bar + 20, 0xf));
    }

    pub(crate) fn set_up(&self, script: &mut Script, queue: u16, addresses: [u64; 3]) {
        script.write(once(Word, self.bar + 22, queue.into()));
        script.write(once(Word, self.bar + 24, SIZE.into()));
        for (register, address) in [32, 40, 48].into_iter().zip(addresses) {
            script.write(once(Quad, self.bar + register, address));
        }
        script.write(once(Word, self.bar + 28, 1));
    }

    pub(crate) fn reset(&self, script: &mut Script) {
        script.write(once(Byte, self.bar + 20, 0));
        // Device status is the first of these four bytes.
        script.wait(self.bar + 20, 0xff, 0);
    }

    /// Descriptor table, available ring and used ring.
    pub(crate) fn ring(&self, queue: u16) -> [u64; 3] {
        let base = 0x100_0000 + u64::from(self.slot) * 0x1_0000 + u64::from(queue) * 0x4000;
        [base, base + 0x1000, base + 0x2000]
    }

    pub(crate) fn describe(&self, script: &mut Script, queue: u16, index: u16, descriptor: Descriptor) {
        let [table, ..] = self.ring(queue);
        put(script, table + 16 * u64::from(index), descriptor);
    }

    /// Makes a chain available.
    pub(crate) fn offer(&mut self, script: &mut Script, queue: u16, head: u16) {
        let [_, available, _] = self.ring(queue);
        let next = &mut self.next_available[usize::from(queue)];
        script.write(once(Word, available + 4 + 2 * u64::from(*next % SIZE), head.into()));
        *next = next.wrapping_add(1);
        script.write(once(Word, available + 2, (*next).into()));
    }

    pub(crate) fn kick(&self, script: &mut Script, queue: u16) {
        script.write(once(Word, self.bar + 0x3000 + 4 * u64::from(queue), queue.into()));
    }

    /// Until the device has given back all that it was offered, or needs a reset.
    pub(crate) fn wait(&self, script: &mut Script, queue: u16) {
        let [_, _, used] = self.ring(queue);
        let next = u32::from(self.next_available[usize::from(queue)]);
        script.wait(used, 0xffff_0000, next << 16);
    }

    /// Until the device says that it cannot go on.
    pub(crate) fn wait_for_needs_reset(&self, script: &mut Script) {
        script.wait(self.bar + 20, 0x40, 0x40);
    }
}

/// Writes a descriptor into any table.
pub(crate) fn put(script: &mut Script, at: u64, descriptor: Descriptor) {
    let Descriptor { address, len, flags, next } = descriptor;
    script.write(once(Quad, at, address));
    script.write(once(Double, at + 8, len.into()));
    script.write(once(Word, at + 12, flags.into()));
    script.write(once(Word, at + 14, next.into()));
}
