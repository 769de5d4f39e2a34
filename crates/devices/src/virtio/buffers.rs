//! Pieces of guest memory that a chain names, checked to be memory.
//!
//! Invariant: every segment lies within one region of the memory that the value itself keeps mapped,
//! so a backend may hand its slices to the kernel for as long as it holds the value.

use std::{fmt, sync::Arc};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _, bitmap::Bitmap};

use super::queue::{Chain, DESCRIPTORS_MAX};
use crate::{Memory, Slice};

/// An ordered list of pieces of guest memory.
pub struct Buffers {
    memory: Arc<Memory>,
    segments: Vec<Segment>,
    len: u64,
}

#[derive(Clone, Copy)]
struct Segment {
    address: GuestAddress,
    len: usize,
}

/// A chain that no device can serve.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadChain {
    /// A descriptor names addresses that are not memory.
    #[error("buffer outside of memory")]
    OutsideMemory,
    /// A buffer for the device to read follows one for it to write (virtio 1.2 section 2.7.4.2).
    #[error("readable buffer after a writable one")]
    WrongOrder,
    /// More than [`DESCRIPTORS_MAX`] descriptors.
    #[error("more than {DESCRIPTORS_MAX} descriptors")]
    TooLong,
}

impl Buffers {
    /// No buffers, of this memory.
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory, segments: Vec::new(), len: 0 }
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is not one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pieces [`Self::slices`] yields.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// How many pieces fit without another allocation.
    pub fn capacity(&self) -> usize {
        self.segments.capacity()
    }

    /// Forget the pieces, keep the allocation.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.len = 0;
    }

    /// Append `len` bytes of guest memory from `address` on.
    ///
    /// # Errors
    /// They are not all memory; nothing was appended.
    pub fn push(&mut self, address: GuestAddress, len: u32) -> Result<(), BadChain> {
        let before = self.segments.len();
        let mut next = address.0;
        for slice in self.memory.get_slices(address, len as usize) {
            let Ok(slice) = slice else {
                self.segments.truncate(before);
                return Err(BadChain::OutsideMemory);
            };
            self.segments.push(Segment { address: GuestAddress(next), len: slice.len() });
            next += slice.len() as u64;
        }
        self.len += u64::from(len);
        Ok(())
    }

    /// Append what a chain has for the device to read to `readable`, the rest to `writable`.
    /// Returns the last byte that the device may write, if it is memory, even where the chain is bad.
    ///
    /// # Errors
    /// The chain breaks the rules; the lists then hold a part of it.
    pub fn gather(
        chain: Chain,
        readable: &mut Self,
        writable: &mut Self,
    ) -> (Option<GuestAddress>, Result<(), BadChain>) {
        let (mut last, mut outcome, mut seen) = (None, Ok(()), 0);
        let mut writing = false;
        for descriptor in chain {
            seen += 1;
            if seen > DESCRIPTORS_MAX {
                return (None, Err(BadChain::TooLong));
            }
            let pushed = if descriptor.is_write_only() {
                writing = true;
                let end = descriptor.addr().0.checked_add(u64::from(descriptor.len()));
                if descriptor.len() > 0 {
                    last = end.map(|end| GuestAddress(end - 1));
                }
                writable.push(descriptor.addr(), descriptor.len())
            } else if writing {
                Err(BadChain::WrongOrder)
            } else {
                readable.push(descriptor.addr(), descriptor.len())
            };
            outcome = outcome.and(pushed);
        }
        let last = last.filter(|&address| readable.memory.address_in_range(address));
        (last, outcome)
    }

    /// Drop the first `count` bytes, or all.
    pub fn advance(&mut self, count: u64) {
        let mut left = count.min(self.len);
        self.len -= left;
        let mut whole = 0;
        for segment in &mut self.segments {
            let len = segment.len as u64;
            if left < len {
                segment.address.0 += left;
                // Less than `segment.len`, so it fits.
                segment.len -= usize::try_from(left).unwrap_or(0);
                break;
            }
            left -= len;
            whole += 1;
        }
        self.segments.drain(..whole);
    }

    /// Keep the first `count` bytes, or all.
    pub fn truncate(&mut self, count: u64) {
        while self.len > count
            && let Some(last) = self.segments.last_mut()
        {
            let excess = usize::try_from(self.len - count).unwrap_or(usize::MAX).min(last.len);
            last.len -= excess;
            self.len -= excess as u64;
            if last.len == 0 {
                self.segments.pop();
            }
        }
    }

    /// The pieces in order.
    pub fn slices(&self) -> impl Iterator<Item = Slice<'_>> {
        self.segments.iter().filter_map(|segment| {
            // Checked by `push`, and the regions of a memory never change: it cannot fail.
            self.memory.get_slice(segment.address, segment.len).ok()
        })
    }

    /// Copy bytes out, from `offset` on; returns how many there were.
    pub fn read_at(&self, offset: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.slices_from(offset) {
            let Some(to) = data.get_mut(done..).filter(|to| !to.is_empty()) else { break };
            done += piece.copy_to(to);
        }
        done
    }

    /// Copy bytes in, from `offset` on; returns how many had room.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.slices_from(offset) {
            let Some(from) = data.get(done..).filter(|from| !from.is_empty()) else { break };
            // A piece of memory takes all that fits.
            done += piece.write(from, 0).unwrap_or(0);
        }
        done
    }

    /// The kernel has written, or is about to write, the first `len` bytes of them by itself.
    pub fn mark_written(&self, len: u64) {
        let mut left = len;
        for slice in self.slices() {
            let here = left.min(slice.len() as u64);
            if here == 0 {
                break;
            }
            slice.bitmap().mark_dirty(0, usize::try_from(here).unwrap_or(slice.len()));
            left -= here;
        }
    }

    /// The pieces from byte `offset` on.
    pub fn slices_from(&self, offset: u64) -> impl Iterator<Item = Slice<'_>> {
        let mut skip = offset;
        self.slices().filter_map(move |slice| {
            let here = skip.min(slice.len() as u64);
            skip -= here;
            slice.offset(usize::try_from(here).ok()?).ok().filter(|slice| !slice.is_empty())
        })
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.segments.iter().map(|s| (s.address.0, s.len))).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::{BadChain, Buffers};
    use crate::Memory;

    /// Two adjacent regions and one behind a hole.
    fn memory() -> Arc<Memory> {
        let ranges =
            [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000), (GuestAddress(0x3000), 0x1000)];
        Arc::new(Memory::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn a_buffer_across_regions_becomes_two_pieces() {
        let memory = memory();
        let mut buffers = Buffers::new(Arc::clone(&memory));
        buffers.push(GuestAddress(0xffe), 4).unwrap();
        assert_eq!(buffers.segments(), 2);
        assert_eq!(buffers.write_at(1, b"abcdef"), 3);
        let mut data = [0; 4];
        memory.read_slice(&mut data, GuestAddress(0xffe)).unwrap();
        assert_eq!(&data, b"\0abc");
        assert_eq!(buffers.read_at(2, &mut data), 2);
        assert_eq!(&data[..2], b"bc");
    }

    #[test]
    fn what_is_not_memory_is_refused_whole() {
        let mut buffers = Buffers::new(memory());
        assert_eq!(buffers.push(GuestAddress(0x1ffe), 4), Err(BadChain::OutsideMemory));
        assert_eq!(buffers.push(GuestAddress(u64::MAX), 2), Err(BadChain::OutsideMemory));
        assert_eq!(buffers.push(GuestAddress(0x3000), u32::MAX), Err(BadChain::OutsideMemory));
        assert_eq!((buffers.len(), buffers.segments()), (0, 0));
        assert_eq!(buffers.push(GuestAddress(0x9999), 0), Ok(()));
    }

    proptest! {
        /// Cutting at both ends is what it would be on a plain list of bytes.
        #[test]
        fn cuts_like_a_list(
            pieces in prop::collection::vec((0u64..0x2000, 0u32..64), 0..8),
            front in 0usize..200, keep in 0usize..200,
        ) {
            let memory = memory();
            let mut buffers = Buffers::new(memory);
            let mut model = Vec::new();
            for (start, len) in pieces {
                if buffers.push(GuestAddress(start), len).is_ok() {
                    model.extend(start..start + u64::from(len));
                }
            }
            buffers.advance(front as u64);
            buffers.truncate(keep as u64);
            let model: Vec<u64> =
                model.into_iter().skip(front).take(keep).collect();
            let bytes: Vec<u64> = buffers.segments.iter()
                .flat_map(|s| s.address.0..s.address.0 + s.len as u64).collect();
            prop_assert_eq!(buffers.len(), bytes.len() as u64);
            prop_assert_eq!(buffers.slices().map(|s| s.len()).sum::<usize>(), bytes.len());
            prop_assert_eq!(bytes, model);
        }
    }
}
