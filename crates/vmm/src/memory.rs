//! Guest memory: RAM below and above the 32-bit hole, made of anonymous pages that the host gives
//! when the guest first touches them.

use std::{io, os::raw::c_int, sync::Arc};

use ec2vmm_devices::Memory;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::x86_64::layout;

/// Guest memory could not be made or cleared.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("mapping {mib} MiB of guest memory")]
    Map {
        /// How much was wanted, MiB.
        mib: u64,
        /// Why it was refused.
        source: vm_memory::mmap::FromRangesError,
    },
    /// The pages could not be given back.
    #[error("clearing guest memory")]
    Clear(#[source] io::Error),
}

/// Maps `mib` MiB of RAM.
///
/// # Errors
/// The host has not that much address space.
pub fn map(mib: u64) -> Result<Arc<Memory>, MemoryError> {
    let ranges: Vec<(GuestAddress, usize)> = layout::ram(mib)
        .into_iter()
        .filter_map(|range| Some((GuestAddress(range.start), usize::try_from(range.end - range.start).ok()?)))
        .collect();
    let memory = Memory::from_ranges(&ranges).map_err(|source| MemoryError::Map { mib, source })?;
    Ok(Arc::new(memory))
}

/// Gives every page back to the host, so that the guest finds zeroes, as after power-on.
///
/// # Errors
/// The host refused.
pub fn clear(memory: &Memory) -> Result<(), MemoryError> {
    memory
        .iter()
        .try_for_each(|region| discard(memory, region.start_addr(), region.len()))
        .map_err(MemoryError::Clear)
}

/// Gives the pages that lie wholly within a range back to the host; they read as zeroes from then on.
///
/// # Errors
/// The range is not guest memory, or the host refused.
pub fn discard(memory: &Memory, start: GuestAddress, len: u64) -> io::Result<()> {
    let outside = || io::Error::new(io::ErrorKind::InvalidInput, "range outside of guest memory");
    let region: &GuestRegionMmap<()> = memory.find_region(start).ok_or_else(outside)?;
    let offset = start.unchecked_offset_from(region.start_addr());
    if len > region.len() - offset {
        return Err(outside());
    }
    let first = offset.next_multiple_of(PAGE_BYTES);
    let end = (offset + len) / PAGE_BYTES * PAGE_BYTES;
    let Some(len) = end.checked_sub(first).filter(|&len| len > 0) else { return Ok(()) };
    let len = usize::try_from(len).map_err(|_| outside())?;
    let first = usize::try_from(first).map_err(|_| outside())?;
    // SAFETY: `first` was checked to lie within this region's mapping.
    let pages = unsafe { region.as_ptr().add(first) };
    // SAFETY: [first, first + len) lies within the mapping too, which is private and anonymous and
    // lives as long as `memory`. Nothing in this process holds a Rust reference into guest memory.
    let result: c_int = unsafe { libc::madvise(pages.cast(), len, libc::MADV_DONTNEED) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const PAGE_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn discarded_pages_read_as_zeroes_and_their_neighbours_stay() {
        let memory = super::map(32).unwrap();
        memory.write_slice(&[7; 3 * 4096], GuestAddress(0x10_0000)).unwrap();
        // Starts and ends within pages: only the whole page between them goes.
        super::discard(&memory, GuestAddress(0x10_0800), 0x1900).unwrap();
        let byte_at = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!(byte_at(0x10_0fff), 7);
        assert_eq!(byte_at(0x10_1000), 0);
        assert_eq!(byte_at(0x10_1fff), 0);
        assert_eq!(byte_at(0x10_2000), 7);
        super::clear(&memory).unwrap();
        assert_eq!(byte_at(0x10_0000), 0);
    }

    #[test]
    fn a_range_outside_of_memory_is_refused() {
        let memory = super::map(32).unwrap();
        super::discard(&memory, GuestAddress(0), u64::MAX).unwrap_err();
        super::discard(&memory, GuestAddress(32 << 20), 4096).unwrap_err();
    }
}
