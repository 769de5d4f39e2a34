//! Guest memory in three regions, each alone between pages that nobody may touch: an access that leaves
//! its region ends the process, also where the guest's addresses go on in the next region.

use std::{ptr, sync::Arc};

use ec2vmm_devices::{Memory, dirty::DirtyLog};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// Where the guest sees them: two that follow each other, and one behind a hole.
pub const REGIONS: [(u64, usize); 3] = [(0, 0x1_0000), (0x1_0000, 0x4000), (0x8000_0000, 0x4000)];

/// Guest memory, and what the driver thinks is in it.
pub struct GuestMemory {
    pub memory: Arc<Memory>,
    shadow: Vec<Vec<u8>>,
}

impl GuestMemory {
    pub fn new() -> Self {
        let regions = REGIONS.map(|(start, len)| region(start, len)).into();
        let memory = Arc::new(Memory::from_regions(regions).expect("regions that do not overlap"));
        Self { memory, shadow: REGIONS.map(|(_, len)| vec![0; len]).to_vec() }
    }

    /// All zeroes.
    pub fn clear(&mut self) {
        for (shadow, region) in self.shadow.iter_mut().zip(self.memory.iter()) {
            shadow.fill(0);
            bytes(region).fill(0);
        }
    }

    /// The driver writes. What is not memory is lost.
    pub fn write(&mut self, address: u64, data: &[u8]) {
        let whole = self.shadow.iter_mut().zip(REGIONS).find_map(|(shadow, (start, len))| {
            let at = address.checked_sub(start).filter(|&at| at < len as u64)? as usize;
            shadow.get_mut(at..at + data.len())
        });
        if let Some(shadow) = whole {
            shadow.copy_from_slice(data);
            self.memory.write_slice(data, GuestAddress(address)).expect("one region");
            return;
        }
        for (at, byte) in (address..).zip(data) {
            if self.memory.write_obj(*byte, GuestAddress(at)).is_ok() {
                *self.shadow_of(at).expect("it was memory") = *byte;
            }
        }
    }

    pub fn read_u16(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap_or(0)
    }

    /// Every address that the device has changed since the last call.
    pub fn changes(&mut self) -> Vec<u64> {
        let mut changes = Vec::new();
        for ((shadow, region), (start, _)) in self.shadow.iter_mut().zip(self.memory.iter()).zip(REGIONS) {
            let now = bytes(region);
            if shadow == now {
                continue;
            }
            for (at, (then, now)) in (start..).zip(shadow.iter_mut().zip(now.iter())) {
                if then != now {
                    *then = *now;
                    changes.push(at);
                }
            }
        }
        changes
    }

    fn shadow_of(&mut self, address: u64) -> Option<&mut u8> {
        let (shadow, at) = self.shadow.iter_mut().zip(REGIONS).find_map(|(shadow, (start, len))| {
            let at = address.checked_sub(start).filter(|&at| at < len as u64)?;
            Some((shadow, at))
        })?;
        shadow.get_mut(at as usize)
    }
}

impl Default for GuestMemory {
    fn default() -> Self {
        Self::new()
    }
}

/// A region's bytes. Targets have one thread, and no device runs while this is used.
#[allow(clippy::mut_from_ref, reason = "as the line above says")]
fn bytes(region: &GuestRegionMmap<DirtyLog>) -> &mut [u8] {
    // SAFETY: the mapping is as long as the region, and nobody else touches it meanwhile.
    unsafe { std::slice::from_raw_parts_mut(region.as_ptr(), region.len() as usize) }
}

fn region(start: u64, len: usize) -> GuestRegionMmap<DirtyLog> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the host's choice overlaps nothing.
    let reserved = unsafe { libc::mmap(ptr::null_mut(), len + 2 * GUARD, libc::PROT_NONE, flags, -1, 0) };
    assert!(reserved != libc::MAP_FAILED, "room for guest memory");
    let memory = reserved.wrapping_byte_add(GUARD);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: these bytes lie within the mapping made above.
    assert!(unsafe { libc::mprotect(memory, len, protection) } == 0, "guest memory to write");
    // SAFETY: the mapping has this length and protection, and is kept for ever.
    let mapping = unsafe { MmapRegion::build_raw(memory.cast(), len, protection, flags) };
    GuestRegionMmap::new(mapping.expect("a mapping"), GuestAddress(start)).expect("an address")
}

const GUARD: usize = 1 << 20;
