//! Which pages change between one snapshot and the next: what KVM says that the guest has written, and what
//! this process has.
//!
//! Invariant: a page that was written and is in no snapshot is in the next difference, also if the snapshot
//! in between failed.

use ec2vmm_devices::Memory;
use ec2vmm_snapshot::{Bitmap, PAGE_BYTES};
use uuid::Uuid;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::vm::{KvmError, Vm};

/// The changes since a snapshot.
#[derive(Debug)]
pub(crate) struct Tracking {
    /// That snapshot.
    pub(super) parent: Uuid,
    /// Taken out of the logs for a snapshot that failed.
    owed: Option<Bitmap>,
}

impl Tracking {
    /// Notes all changes from now on, in the place of what was noted before. The guest stands still.
    pub(super) fn start(parent: Uuid, memory: &Memory, vm: &Vm) -> Result<Self, KvmError> {
        vm.log_dirty(true)?;
        memory.iter().for_each(|region| region.bitmap().log().turn(true));
        Ok(Self { parent, owed: None })
    }

    /// A new VM has the memory, which has changed all over.
    pub(crate) fn start_over(&self, memory: &Memory, vm: &Vm) -> Result<(), KvmError> {
        vm.log_dirty(true)?;
        memory.iter().for_each(|region| region.bitmap().log().mark_all());
        Ok(())
    }

    /// Notes nothing any more.
    pub(super) fn stop(memory: &Memory, vm: &Vm) -> Result<(), KvmError> {
        memory.iter().for_each(|region| region.bitmap().log().turn(false));
        vm.log_dirty(false)
    }

    /// The pages that have changed, by their numbers in RAM. They count as unchanged from now on, unless
    /// [`Self::owe`] takes it back.
    pub(super) fn take(&mut self, memory: &Memory, vm: &Vm) -> Result<Bitmap, KvmError> {
        let pages: u64 = memory.iter().map(|region| region.len() / PAGE_BYTES).sum();
        let mut changed = self.owed.take().unwrap_or_else(|| Bitmap::new(pages));
        let mut first = 0;
        for (slot, region) in (0_u32..).zip(memory.iter()) {
            match vm.take_dirty(slot, region.len()) {
                Ok(guests) => changed.set_words(first, &guests),
                Err(error) => {
                    self.owed = Some(changed);
                    return Err(error);
                }
            }
            changed.set_words(first, &region.bitmap().log().take());
            first += region.len() / PAGE_BYTES;
        }
        Ok(changed)
    }

    /// No snapshot has these pages after all.
    pub(super) fn owe(&mut self, changed: Bitmap) {
        self.owed = Some(changed);
    }
}
