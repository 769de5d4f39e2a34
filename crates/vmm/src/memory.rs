//! Guest memory: RAM below and above the 32-bit hole, made of anonymous pages that the host gives
//! when the guest first touches them.
//!
//! Invariant: every region begins on a huge page of this process and of the guest alike, so that the
//! host can back both with one huge page: it then takes one exit and one page-table entry for 512
//! pages.

use std::{io, ops::Range, os::raw::c_int, ptr, sync::Arc};

use ec2vmm_devices::Memory;
use ec2vmm_vmm_api::config::HUGE_PAGE_MIB;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};

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
        source: io::Error,
    },
    /// The host has not so many huge pages left.
    #[error("taking {pages} huge pages of {HUGE_PAGE_MIB} MiB for guest memory")]
    HugePages {
        /// How many are needed.
        pages: u64,
        /// Why there are none.
        source: io::Error,
    },
    /// The pages could not be given back.
    #[error("clearing guest memory")]
    Clear(#[source] io::Error),
}

/// Maps `mib` MiB of RAM, until the end of the process.
///
/// # Errors
/// The host has not that much address space.
pub fn map(mib: u64) -> Result<Arc<Memory>, MemoryError> {
    map_regions(mib, FLAGS).map_err(|source| MemoryError::Map { mib, source })
}

/// Maps `mib` MiB of RAM, a whole number of huge pages, that the host takes from those that it keeps.
///
/// # Errors
/// The host has not so many left.
pub fn map_huge(mib: u64) -> Result<Arc<Memory>, MemoryError> {
    let pages = mib.div_ceil(HUGE_PAGE_MIB);
    map_regions(mib, HUGE_FLAGS).map_err(|source| MemoryError::HugePages { pages, source })
}

fn map_regions(mib: u64, flags: c_int) -> io::Result<Arc<Memory>> {
    let regions = layout::ram(mib).into_iter().map(|range| map_region(range, flags));
    let memory = Memory::from_regions(regions.collect::<io::Result<Vec<_>>>()?).map_err(io::Error::other)?;
    Ok(Arc::new(memory))
}

fn map_region(range: Range<u64>, flags: c_int) -> io::Result<GuestRegionMmap<()>> {
    let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
    let len = usize::try_from(range.end - range.start).map_err(|_| too_large())?;
    let start = if flags == HUGE_FLAGS { new_mapping(len, flags)? } else { reserve(len)? };
    #[allow(unsafe_code, reason = "a mapping at a chosen address")]
    // SAFETY: these `len` bytes have just been mapped with this protection and these flags, for nobody
    // else, and nobody unmaps them.
    let mapping = unsafe { MmapRegion::build_raw(start.cast(), len, PROTECTION, flags) };
    GuestRegionMmap::new(mapping.map_err(io::Error::other)?, GuestAddress(range.start)).ok_or_else(too_large)
}

/// Maps `len` bytes that begin on a huge page.
fn reserve(len: usize) -> io::Result<*mut libc::c_void> {
    let room = len.checked_add(HUGE_PAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
    let start = new_mapping(room, FLAGS)?;
    let before = start.addr().next_multiple_of(HUGE_PAGE_BYTES) - start.addr();
    let aligned = start.wrapping_byte_add(before);
    for (unused, len) in [(start, before), (aligned.wrapping_byte_add(len), HUGE_PAGE_BYTES - before)] {
        #[allow(unsafe_code, reason = "munmap")]
        // SAFETY: both ends lie within the mapping made above, which nobody else knows of.
        // Where there is nothing to unmap, or it cannot be, address space is all that is lost.
        let _ = unsafe { libc::munmap(unused, len) };
    }
    #[allow(unsafe_code, reason = "madvise")]
    // SAFETY: the range is the mapping's; the advice changes nothing that is in it.
    if unsafe { libc::madvise(aligned, len, libc::MADV_HUGEPAGE) } != 0 {
        log::debug!("no huge pages for guest memory: {}", io::Error::last_os_error());
    }
    Ok(aligned)
}

fn new_mapping(len: usize, flags: c_int) -> io::Result<*mut libc::c_void> {
    #[allow(unsafe_code, reason = "mmap")]
    // SAFETY: a new mapping at an address of the host's choice overlaps nothing.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, PROTECTION, flags, -1, 0) };
    if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(start) }
}

/// Gives every page back to the host, so that the guest finds zeroes, as after power-on.
///
/// # Errors
/// The host refused.
pub fn clear(memory: &Memory) -> Result<(), MemoryError> {
    memory
        .iter()
        .try_for_each(|region| match region.flags() {
            HUGE_FLAGS => write_zeroes(region),
            _ => discard(memory, region.start_addr(), region.len()),
        })
        .map_err(MemoryError::Clear)
}

/// For huge pages, which are kept: the host would not promise to have one again.
fn write_zeroes(region: &GuestRegionMmap<()>) -> io::Result<()> {
    static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
    let (mut at, end) = (0, region.len());
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROES.len());
        let zeroes = ZEROES.get(..len).unwrap_or_default();
        region.write_slice(zeroes, MemoryRegionAddress(at)).map_err(io::Error::other)?;
        at += len as u64;
    }
    Ok(())
}

/// Gives the pages that lie wholly within a range back to the host; they read as zeroes from then on. Huge
/// pages that the host keeps for the machine stay as they are.
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
    if region.flags() == HUGE_FLAGS {
        return Ok(());
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
/// What one entry of a page directory maps.
const HUGE_PAGE_BYTES: usize = 2 << 20;
const PROTECTION: c_int = libc::PROT_READ | libc::PROT_WRITE;
/// Memory that the guest does not use is not charged to the host.
const FLAGS: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
/// All that is mapped is taken at once: a guest that found no page later would be ended.
const HUGE_FLAGS: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

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
    fn huge_pages_are_taken_at_once_or_not_at_all_and_kept() {
        let free = || {
            let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
            let line = meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        if free() < 16 {
            let error = super::map_huge(1 << 20).unwrap_err();
            assert!(matches!(error, super::MemoryError::HugePages { pages: 524_288, .. }), "{error}");
            return;
        }
        let memory = super::map_huge(32).unwrap();
        memory.write_slice(&[7; 4096], GuestAddress(0x20_0000)).unwrap();
        super::discard(&memory, GuestAddress(0x20_0000), 2 << 20).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x20_0000)).unwrap(), 7);
        super::clear(&memory).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x20_0000)).unwrap(), 0);
    }

    #[test]
    fn regions_begin_on_a_huge_page_here_and_in_the_guest() {
        let memory = super::map(3200).unwrap();
        for region in memory.iter() {
            assert_eq!(region.start_addr().0 % super::HUGE_PAGE_BYTES as u64, 0);
            assert_eq!(region.as_ptr().addr() % super::HUGE_PAGE_BYTES, 0);
        }
        assert_eq!(memory.num_regions(), 2);
    }

    #[test]
    fn a_range_outside_of_memory_is_refused() {
        let memory = super::map(32).unwrap();
        super::discard(&memory, GuestAddress(0), u64::MAX).unwrap_err();
        super::discard(&memory, GuestAddress(32 << 20), 4096).unwrap_err();
    }
}
