//! The memory file of a snapshot: guest memory, then a tail that says what it is.
//!
//! | bytes | what |
//! |---|---|
//! | from 0 | RAM, its regions one after the other; pages that hold nothing but zeroes are holes |
//! | from the size of RAM | [`MAGIC`]; format, u32 LE; kind, u32 LE (0 full, 1 difference) |
//! | + 16 | the snapshot's id, 16 bytes; that of the snapshot it is a difference to, or zero |
//! | + 48 | bytes of RAM; bytes of the bitmap; CRC-64/XZ of the tail without this and of the bitmap, u64 LE each |
//! | + 4096 | the bitmap: bit N of byte N / 8 says that page N is in this file |
//!
//! A page that is not in a full file is zero, one that is not in a difference is as it was before.
//! Nothing is in front of RAM, so that the file can be mapped; the tail is behind it, so that a file that is
//! cut short has none.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use ec2vmm_devices::Memory;
use uuid::Uuid;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::file::CRC;

/// A memory file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFileError {
    /// The tail is not where it belongs.
    #[error("memory file {index} is cut short, or is none of a machine with this much memory")]
    Magic {
        /// Which of the files, from 0.
        index: usize,
    },
    /// Of a later version.
    #[error("memory file {index} is in format {format}, and this ec2vmm reads formats 1 to {FORMAT}")]
    Format {
        /// Which of the files, from 0.
        index: usize,
        /// Its format.
        format: u32,
    },
    /// It was damaged.
    #[error("memory file {index} is damaged: its tail's checksum is not what it was")]
    Checksum {
        /// Which of the files, from 0.
        index: usize,
    },
    /// It is another snapshot's.
    #[error("{0}")]
    Chain(&'static str),
    /// It was whole when the machine was restored.
    #[error("memory file {index} was cut short while the machine ran")]
    Shortened {
        /// Which of the files, from 0.
        index: usize,
    },
    /// The system refused.
    #[error("reading memory file {index}")]
    Read {
        /// Which of the files, from 0.
        index: usize,
        /// Why.
        source: io::Error,
    },
}

/// What a memory file is, and which pages it has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Tail {
    /// The snapshot that it belongs to.
    pub(super) id: Uuid,
    /// The snapshot before, of a difference.
    pub(super) parent: Option<Uuid>,
    /// A bit a page.
    pub(super) pages: Bitmap,
}

/// Pages of RAM, a bit each.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Bitmap(Vec<u8>);

impl Bitmap {
    /// None of `pages`.
    pub(super) fn new(pages: u64) -> Self {
        Self(vec![0; usize::try_from(pages.div_ceil(8)).unwrap_or(0)])
    }

    /// Adds a page. One that is not there is left out.
    pub(super) fn set(&mut self, page: u64) {
        if let Some(byte) = usize::try_from(page / 8).ok().and_then(|at| self.0.get_mut(at)) {
            *byte |= 1 << (page % 8);
        }
    }

    /// Adds those of which the bit is set, the first being page `first`.
    pub(super) fn set_words(&mut self, first: u64, words: &[u64]) {
        for (page, word) in (first..).step_by(64).zip(words) {
            let bits = (0..64).filter(|bit| word >> bit & 1 == 1);
            bits.for_each(|bit| self.set(page + bit));
        }
    }

    /// Whether a page is in it.
    pub(super) fn has(&self, page: u64) -> bool {
        let byte = usize::try_from(page / 8).ok().and_then(|at| self.0.get(at));
        byte.is_some_and(|byte| byte >> (page % 8) & 1 == 1)
    }

    /// Takes pages out. How many of them were in it.
    pub(super) fn clear(&mut self, pages: Range<u64>) -> u64 {
        let mut cleared = 0;
        for page in pages {
            let Some(byte) = usize::try_from(page / 8).ok().and_then(|at| self.0.get_mut(at)) else { break };
            cleared += u64::from(*byte >> (page % 8) & 1);
            *byte &= !(1 << (page % 8));
        }
        cleared
    }

    /// Adds those of another of as many.
    pub(super) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own |= other);
    }

    /// The first that is in it from this one on.
    pub(super) fn next(&self, from: u64) -> Option<u64> {
        let end = self.0.len() as u64 * 8;
        let mut page = from;
        while page < end && !self.has(page) {
            // A byte at a time where there is nothing.
            page = if page.is_multiple_of(8) && self.is_byte_empty(page) { page + 8 } else { page + 1 };
        }
        (page < end).then_some(page)
    }

    /// How many are in it.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// Runs of pages that are in it: the first, and how many.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut page = 0;
        std::iter::from_fn(move || {
            let first = self.next(page)?;
            page = first;
            while self.has(page) {
                page += 1;
            }
            Some((first, page - first))
        })
    }

    fn is_byte_empty(&self, page: u64) -> bool {
        usize::try_from(page / 8).ok().and_then(|at| self.0.get(at)) == Some(&0)
    }
}

/// Writes guest memory: all of it, or the pages in `changed` since the snapshot `parent`. The guest stands
/// still. Returns how many bytes of pages were written.
///
/// # Errors
/// The file is none that can be written at any place, or the disk is full.
pub(super) fn write(
    memory: &Memory,
    file: &File,
    id: Uuid,
    changed: Option<(&Bitmap, Uuid)>,
) -> io::Result<u64> {
    let ram_bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    let mut pages = Bitmap::new(ram_bytes / PAGE_BYTES);
    // Whatever was there is gone, and all is a hole.
    file.set_len(0)?;
    file.set_len(ram_bytes)?;
    let mut writer = Writer { file, pages: &mut pages, is_difference: changed.is_some(), written: 0 };
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut start = 0;
    for region in memory.iter() {
        let mut offset = 0;
        while offset < region.len() {
            let len = (region.len() - offset).min(CHUNK_BYTES as u64);
            let at = start + offset;
            let wanted = |page: u64| changed.is_none_or(|(changed, _)| changed.has(page));
            if (at / PAGE_BYTES..(at + len) / PAGE_BYTES).any(wanted) {
                let chunk = buffer.get_mut(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
                for (page, to) in (offset..).step_by(PAGE_LEN).zip(chunk.chunks_mut(PAGE_LEN)) {
                    // What is not touched here need not be brought into memory for it.
                    if wanted((start + page) / PAGE_BYTES) {
                        let page = region.get_slice(MemoryRegionAddress(page), to.len());
                        page.map_err(io::Error::other)?.copy_to(to);
                    }
                }
                writer.put(at, chunk, wanted)?;
            }
            offset += len;
        }
        start += region.len();
    }
    let written = writer.written;
    write_tail(file, ram_bytes, id, changed.map(|(_, parent)| parent), &pages)?;
    Ok(written)
}

struct Writer<'a> {
    file: &'a File,
    pages: &'a mut Bitmap,
    is_difference: bool,
    written: u64,
}

impl Writer<'_> {
    /// Writes the wanted pages of a chunk that are not zero, neighbours together.
    fn put(&mut self, at: u64, chunk: &[u8], wanted: impl Fn(u64) -> bool) -> io::Result<()> {
        let mut run = 0..0;
        for (index, page) in chunk.chunks(PAGE_LEN).enumerate() {
            let number = at / PAGE_BYTES + index as u64;
            let is_zero = is_zero(page);
            if wanted(number) && (self.is_difference || !is_zero) {
                self.pages.set(number);
            }
            let offset = index * PAGE_LEN;
            if wanted(number) && !is_zero {
                run = if run.end == offset && !run.is_empty() { run.start } else { offset }
                    ..offset + page.len();
                if chunk.len() > run.end {
                    continue;
                }
            }
            self.flush(at, chunk, &mut run)?;
        }
        Ok(())
    }

    fn flush(&mut self, at: u64, chunk: &[u8], run: &mut std::ops::Range<usize>) -> io::Result<()> {
        let range = std::mem::take(run);
        let start = range.start as u64;
        let Some(bytes) = chunk.get(range).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        self.file.write_all_at(bytes, at + start)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

fn write_tail(file: &File, ram_bytes: u64, id: Uuid, parent: Option<Uuid>, pages: &Bitmap) -> io::Result<()> {
    let mut tail = Vec::with_capacity(PAGE_LEN);
    tail.extend(MAGIC);
    tail.extend(FORMAT.to_le_bytes());
    tail.extend(u32::from(parent.is_some()).to_le_bytes());
    tail.extend(id.as_bytes());
    tail.extend(parent.unwrap_or_default().as_bytes());
    tail.extend(ram_bytes.to_le_bytes());
    tail.extend((pages.0.len() as u64).to_le_bytes());
    tail.extend(checksum(&tail, pages).to_le_bytes());
    tail.resize(PAGE_LEN, 0);
    tail.extend(&pages.0);
    file.write_all_at(&tail, ram_bytes)
}

/// Reads the tail of file `index` of a machine with so much memory.
///
/// # Errors
/// See [`MemoryFileError`].
pub(super) fn read_tail(file: &File, index: usize, ram_bytes: u64) -> Result<Tail, MemoryFileError> {
    let mut pages = Bitmap::new(ram_bytes / PAGE_BYTES);
    let mut head = [0; HEAD_BYTES];
    read_at(file, index, &mut head, ram_bytes)?;
    let (head, sum) = head.split_last_chunk::<8>().ok_or(MemoryFileError::Magic { index })?;
    let fields = (head.get(..8), word(head, 8), word(head, 48), word(head, 56));
    let (Some(magic), Some(format_and_kind), Some(ram), Some(bitmap)) = fields else {
        return Err(MemoryFileError::Magic { index });
    };
    if magic != MAGIC {
        return Err(MemoryFileError::Magic { index });
    }
    let [a, b, c, d, kind, ..] = format_and_kind.to_le_bytes();
    let format = u32::from_le_bytes([a, b, c, d]);
    if !(1..=FORMAT).contains(&format) {
        return Err(MemoryFileError::Format { index, format });
    }
    if ram != ram_bytes || bitmap != pages.0.len() as u64 {
        return Err(MemoryFileError::Magic { index });
    }
    read_at(file, index, &mut pages.0, ram_bytes + PAGE_BYTES)?;
    if checksum(head, &pages) != u64::from_le_bytes(*sum) {
        return Err(MemoryFileError::Checksum { index });
    }
    let id = |at: usize| head.get(at..at + 16).and_then(|bytes| Uuid::from_slice(bytes).ok());
    let (Some(own), Some(parent)) = (id(16), id(32)) else { return Err(MemoryFileError::Magic { index }) };
    Ok(Tail { id: own, parent: (kind == 1).then_some(parent), pages })
}

fn read_at(file: &File, index: usize, bytes: &mut [u8], at: u64) -> Result<(), MemoryFileError> {
    file.read_exact_at(bytes, at).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => MemoryFileError::Magic { index },
        _ => MemoryFileError::Read { index, source },
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

fn checksum(head: &[u8], pages: &Bitmap) -> u64 {
    let mut digest = CRC.digest();
    digest.update(head);
    digest.update(&pages.0);
    digest.finalize()
}

/// How the tail begins.
pub(super) const MAGIC: [u8; 8] = *b"ec2vmmem";
/// What this version writes, and the latest that it reads.
pub(super) const FORMAT: u32 = 1;
/// Bytes of a page.
pub(super) const PAGE_BYTES: u64 = PAGE_LEN as u64;
const PAGE_LEN: usize = 4096;
/// Up to and with the checksum.
const HEAD_BYTES: usize = 72;
/// Copied out of guest memory at once.
const CHUNK_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests;
