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

use uuid::Uuid;

use crate::{CRC, bitmap::Bitmap};

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
pub struct Tail {
    /// The snapshot that it belongs to.
    pub id: Uuid,
    /// The snapshot before, of a difference.
    pub parent: Option<Uuid>,
    /// A bit a page.
    pub pages: Bitmap,
}

/// Writes a memory file, piece by piece.
#[derive(Debug)]
pub struct MemoryWriter<'a> {
    file: &'a File,
    ram_bytes: u64,
    pages: Bitmap,
    parent: Option<Uuid>,
    written: u64,
}

impl<'a> MemoryWriter<'a> {
    /// Begins one of a machine with so much memory; with a parent a difference to it. What was in the file is lost.
    ///
    /// # Errors
    /// The file is none whose length can be set.
    pub fn new(file: &'a File, ram_bytes: u64, parent: Option<Uuid>) -> io::Result<Self> {
        // Whatever was there is gone, and all is a hole.
        file.set_len(0)?;
        file.set_len(ram_bytes)?;
        Ok(Self { file, ram_bytes, pages: Bitmap::new(ram_bytes / PAGE_BYTES), parent, written: 0 })
    }

    /// Ends it as the snapshot's of this name. How many bytes of pages were written.
    ///
    /// # Errors
    /// The file takes no more.
    pub fn finish(self, id: Uuid) -> io::Result<u64> {
        let Self { file, ram_bytes, pages, parent, written } = self;
        write_tail(file, ram_bytes, id, parent, &pages)?;
        Ok(written)
    }

    /// Writes the wanted pages of a chunk of whole pages that belongs at `at`, neighbours together. Pages of zeroes
    /// are holes.
    ///
    /// # Errors
    /// The file takes no more.
    pub fn put(&mut self, at: u64, chunk: &[u8], wanted: impl Fn(u64) -> bool) -> io::Result<()> {
        let mut run = 0..0;
        for (index, page) in chunk.chunks(PAGE_LEN).enumerate() {
            let number = at / PAGE_BYTES + index as u64;
            let is_zero = is_zero(page);
            if wanted(number) && (self.parent.is_some() || !is_zero) {
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

    fn flush(&mut self, at: u64, chunk: &[u8], run: &mut Range<usize>) -> io::Result<()> {
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
pub fn read_tail(file: &File, index: usize, ram_bytes: u64) -> Result<Tail, MemoryFileError> {
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
pub(crate) const MAGIC: [u8; 8] = *b"ec2vmmem";
/// What this version writes, and the latest that it reads.
pub(crate) const FORMAT: u32 = 1;
/// Bytes of a page.
pub const PAGE_BYTES: u64 = PAGE_LEN as u64;
const PAGE_LEN: usize = 4096;
/// Up to and with the checksum.
const HEAD_BYTES: usize = 72;
