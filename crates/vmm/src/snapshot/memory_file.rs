//! Guest memory, into a memory file.

use std::{
    fs::File,
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use ec2vmm_devices::Memory;
use ec2vmm_snapshot::{Bitmap, MemoryWriter, PAGE_BYTES};
use uuid::Uuid;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::TakeError;

/// Writes guest memory: all of it, or the pages in `changed` since the snapshot `parent`. The guest stands
/// still. Returns how many bytes of pages were written.
///
/// # Errors
/// The file is none that can be written at any place, or the disk is full; or `given_up` was set, and the file has
/// no tail.
pub(super) fn write(
    memory: &Memory,
    file: &File,
    id: Uuid,
    changed: Option<(&Bitmap, Uuid)>,
    given_up: &AtomicBool,
) -> Result<u64, TakeError> {
    let failed = |source| TakeError::Write("memory", source);
    let ram_bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    let mut writer = MemoryWriter::new(file, ram_bytes, changed.map(|(_, parent)| parent)).map_err(failed)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut start = 0;
    for region in memory.iter() {
        let mut offset = 0;
        while offset < region.len() {
            if given_up.load(Ordering::Acquire) {
                return Err(TakeError::GivenUp);
            }
            let len = (region.len() - offset).min(CHUNK_BYTES as u64);
            let at = start + offset;
            let wanted = |page: u64| changed.is_none_or(|(changed, _)| changed.has(page));
            if (at / PAGE_BYTES..(at + len) / PAGE_BYTES).any(wanted) {
                let chunk = buffer.get_mut(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
                for (page, to) in (offset..).step_by(PAGE_LEN).zip(chunk.chunks_mut(PAGE_LEN)) {
                    // What is not touched here need not be brought into memory for it.
                    if wanted((start + page) / PAGE_BYTES) {
                        let page = region.get_slice(MemoryRegionAddress(page), to.len());
                        page.map_err(|error| failed(io::Error::other(error)))?.copy_to(to);
                    }
                }
                writer.put(at, chunk, wanted).map_err(failed)?;
            }
            offset += len;
        }
        start += region.len();
    }
    // What was read last may have been read when nobody kept it any more.
    if given_up.load(Ordering::Acquire) {
        return Err(TakeError::GivenUp);
    }
    writer.finish(id).map_err(failed)
}

const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE_LEN as u64 == PAGE_BYTES, "the same");
/// Copied out of guest memory at once.
const CHUNK_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests;
