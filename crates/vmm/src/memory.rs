//! Guest memory: RAM below and above the 32-bit hole, made of anonymous pages that the host gives
//! when the guest first touches them.
//!
//! Invariant: every region begins on a huge page of this process and of the guest alike, so that the
//! host can back both with one huge page: it then takes one exit and one page-table entry for 512
//! pages.

use std::{
    fs::File,
    io,
    ops::Range,
    os::{
        fd::{AsRawFd, RawFd},
        raw::c_int,
        unix::fs::FileExt,
    },
    ptr,
    sync::Arc,
};

use ec2vmm_devices::{Memory, dirty::DirtyLog};
use ec2vmm_vmm_api::config::HUGE_PAGE_MIB;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion, bitmap::Bitmap,
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
    /// A file of changed pages could not be read.
    #[error("reading guest memory")]
    Read(#[source] io::Error),
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

fn map_region(range: Range<u64>, flags: c_int) -> io::Result<GuestRegionMmap<DirtyLog>> {
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
    advise_huge_pages(aligned, len);
    Ok(aligned)
}

fn advise_huge_pages(start: *mut libc::c_void, len: usize) {
    #[allow(unsafe_code, reason = "madvise")]
    // SAFETY: the range is a mapping of guest memory; the advice changes nothing that is in it.
    if unsafe { libc::madvise(start, len, libc::MADV_HUGEPAGE) } != 0 {
        log::debug!("no huge pages for guest memory: {}", io::Error::last_os_error());
    }
}

/// Maps `mib` MiB of RAM that hold what `file` holds, its regions one after the other from the beginning
/// on. Pages are read when they are touched, shared as long as nobody writes them, and the guest's own from
/// then on: the file stays as it is. Whoever cuts it short ends this process.
///
/// # Errors
/// The host has not that much address space, or the file cannot be mapped.
pub fn map_file(mib: u64, file: &File) -> Result<Arc<Memory>, MemoryError> {
    let memory = map(mib)?;
    let mut offset = 0;
    for region in memory.iter() {
        replace(region, FLAGS & !libc::MAP_ANONYMOUS, file.as_raw_fd(), offset)
            .map_err(|source| MemoryError::Map { mib, source })?;
        offset += region.len();
    }
    Ok(memory)
}

/// Lets go of the file: every page is zero, as after power-on. No VM has the memory now.
///
/// # Errors
/// The host refused.
pub fn forget_file(memory: &Memory) -> Result<(), MemoryError> {
    memory.iter().try_for_each(|region| replace(region, FLAGS, -1, 0)).map_err(MemoryError::Clear)
}

/// Puts another mapping in the place of a region's.
fn replace(region: &GuestRegionMmap<DirtyLog>, flags: c_int, fd: RawFd, offset: u64) -> io::Result<()> {
    let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
    let len = usize::try_from(region.len()).map_err(too_large)?;
    let offset = libc::off_t::try_from(offset).map_err(too_large)?;
    let start = region.as_ptr().cast();
    #[allow(unsafe_code, reason = "mmap at a chosen address")]
    // SAFETY: these `len` bytes are the region's mapping, which nobody unmaps. Nothing in this process holds a
    // Rust reference into guest memory, so that its content may change.
    let mapped = unsafe { libc::mmap(start, len, PROTECTION, flags | libc::MAP_FIXED, fd, offset) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    advise_huge_pages(mapped, len);
    Ok(())
}

/// Reads runs of pages (the first, and how many) from where they are in `file` to where they are in memory.
///
/// # Errors
/// The file is shorter, or cannot be read.
pub fn overlay(
    memory: &Memory,
    file: &File,
    runs: impl Iterator<Item = (u64, u64)>,
) -> Result<(), MemoryError> {
    let mut buffer = vec![0; COPY_BYTES];
    for (first, count) in runs {
        let (mut at, end) = (first * PAGE_BYTES, (first + count) * PAGE_BYTES);
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            let bytes = buffer.get_mut(..len).unwrap_or_default();
            file.read_exact_at(bytes, at).map_err(MemoryError::Read)?;
            put(memory, at, bytes).map_err(MemoryError::Read)?;
            at += len as u64;
        }
    }
    Ok(())
}

/// Writes bytes at an offset into RAM, of which the regions lie one after the other.
fn put(memory: &Memory, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let (mut offset, mut bytes) = (offset, bytes);
    for region in memory.iter() {
        if offset >= region.len() {
            offset -= region.len();
            continue;
        }
        let room = usize::try_from(region.len() - offset).unwrap_or(usize::MAX);
        let (here, rest) = bytes.split_at(room.min(bytes.len()));
        region.write_slice(here, MemoryRegionAddress(offset)).map_err(io::Error::other)?;
        (offset, bytes) = (0, rest);
    }
    if bytes.is_empty() { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
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
fn write_zeroes(region: &GuestRegionMmap<DirtyLog>) -> io::Result<()> {
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
    let (region, pages) = whole_pages(memory, start, len)?;
    if region.flags() == HUGE_FLAGS || pages.is_empty() {
        return Ok(());
    }
    let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
    let first = usize::try_from(pages.start).map_err(too_large)?;
    let len = usize::try_from(pages.end).map_err(too_large)? - first;
    region.bitmap().mark_dirty(first, len);
    // SAFETY: `first` lies within this region's mapping, see `whole_pages`.
    let pages = unsafe { region.as_ptr().add(first) };
    // SAFETY: [first, first + len) lies within the mapping too, which is private and anonymous and
    // lives as long as `memory`. Nothing in this process holds a Rust reference into guest memory.
    let result: c_int = unsafe { libc::madvise(pages.cast(), len, libc::MADV_DONTNEED) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The pages that lie wholly within a range of guest memory, by their numbers in RAM, of which the regions lie one
/// after the other.
///
/// # Errors
/// The range is not guest memory.
pub fn ram_pages(memory: &Memory, start: GuestAddress, len: u64) -> io::Result<Range<u64>> {
    let (region, bytes) = whole_pages(memory, start, len)?;
    let before = memory.iter().take_while(|other| other.start_addr() < region.start_addr());
    let before: u64 = before.map(GuestMemoryRegion::len).sum();
    Ok((before + bytes.start) / PAGE_BYTES..(before + bytes.end) / PAGE_BYTES)
}

/// Of a range, the region, and the whole pages as offsets into it.
fn whole_pages(
    memory: &Memory,
    start: GuestAddress,
    len: u64,
) -> io::Result<(&GuestRegionMmap<DirtyLog>, Range<u64>)> {
    let outside = || io::Error::new(io::ErrorKind::InvalidInput, "range outside of guest memory");
    let region: &GuestRegionMmap<DirtyLog> = memory.find_region(start).ok_or_else(outside)?;
    let offset = start.unchecked_offset_from(region.start_addr());
    if len > region.len() - offset {
        return Err(outside());
    }
    let first = offset.next_multiple_of(PAGE_BYTES);
    Ok((region, first..first.max((offset + len) / PAGE_BYTES * PAGE_BYTES)))
}

const PAGE_BYTES: u64 = 4096;
/// Read from a file at once.
const COPY_BYTES: usize = 256 * 1024;
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
    fn pages_are_counted_through_all_regions() {
        let memory = super::map(3200).unwrap();
        let low = memory.iter().next().unwrap().len();
        let high = memory.iter().nth(1).unwrap().start_addr().0;
        let pages = |start, len| super::ram_pages(&memory, GuestAddress(start), len).unwrap();
        assert_eq!(pages(4096, 8192), 1..3);
        assert_eq!(pages(4095, 8192), 1..2);
        assert!(pages(4097, 4096).is_empty());
        assert_eq!(pages(high, 4096), low / 4096..low / 4096 + 1);
        assert_eq!(pages(high + 8192, 4096), low / 4096 + 2..low / 4096 + 3);
        super::ram_pages(&memory, GuestAddress(low - 4096), 8192).unwrap_err();
    }

    #[test]
    fn a_range_outside_of_memory_is_refused() {
        let memory = super::map(32).unwrap();
        super::discard(&memory, GuestAddress(0), u64::MAX).unwrap_err();
        super::discard(&memory, GuestAddress(32 << 20), 4096).unwrap_err();
    }
}
