//! A working set: the pages of a snapshot's memory that a machine has touched, the first one first. A file of
//! its own, for restores to come.
//!
//! | bytes | what |
//! |---|---|
//! | 0 to 7 | [`MAGIC`] |
//! | 8 to 11 | [`FORMAT`], u32 LE |
//! | 12 to 15 | zero |
//! | 16 to 31 | the snapshot's id |
//! | 32 to 39 | bytes of RAM, u64 LE |
//! | 40 to 47 | how many pages there are, u64 LE, at most [`PAGES_MAX`] |
//! | 48 to 55 | CRC-64/XZ of all before and of all behind, u64 LE |
//! | from 56 | the pages' numbers in RAM, u32 LE each |
//!
//! Whoever writes such a file decides which pages of that one snapshot are read early, and nothing more.

use std::{fs::File, io, os::unix::fs::FileExt};

use ec2vmm_snapshot::{CRC, PAGE_BYTES};
use uuid::Uuid;

/// A file of a working set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    /// Not even the beginning is right.
    #[error("not a working set: it does not start with the magic number")]
    Magic,
    /// Of a later version.
    #[error("the working set is in format {0}, and this ec2vmm reads formats 1 to {FORMAT}")]
    Format(u32),
    /// Another snapshot's.
    #[error("the working set is of another snapshot")]
    Snapshot,
    /// More pages than there can be.
    #[error("the working set has {0} pages, and none has more than {PAGES_MAX}")]
    TooLarge(u64),
    /// It names what is not there.
    #[error("the working set has page {page}, and the machine has {pages}")]
    Page {
        /// Its number.
        page: u32,
        /// How many there are.
        pages: u64,
    },
    /// It ends before its end: it is still being written, or its machine was killed.
    #[error("the working set is cut short")]
    Short,
    /// It was damaged.
    #[error("the working set is damaged: its checksum is not what it was")]
    Checksum,
    /// The system refused.
    #[error("reading the working set")]
    Read(#[source] io::Error),
}

/// Which snapshot a working set belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Whose {
    /// Its id.
    pub id: Uuid,
    /// Its memory, bytes.
    pub ram_bytes: u64,
}

/// Writes pages into `file`, whose content is lost.
///
/// # Errors
/// The file is none that can be written at any place, or the disk is full.
pub fn write(file: &File, whose: Whose, pages: &[u32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + pages.len() * 4);
    bytes.extend(MAGIC);
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(whose.id.as_bytes());
    bytes.extend(whose.ram_bytes.to_le_bytes());
    bytes.extend((pages.len() as u64).to_le_bytes());
    let (head, tail) = (bytes.clone(), pages.iter().flat_map(|page| page.to_le_bytes()));
    let tail: Vec<u8> = tail.collect();
    bytes.extend(checksum(&head, &tail).to_le_bytes());
    bytes.extend(tail);
    file.set_len(0)?;
    file.write_all_at(&bytes, 0)
}

/// Reads what [`write`] has written, now or in an earlier version, of this snapshot.
///
/// # Errors
/// See [`WorkingSetError`].
pub fn read(file: &File, whose: Whose) -> Result<Vec<u32>, WorkingSetError> {
    let mut header = [0; HEADER_BYTES];
    read_at(file, &mut header, 0)?;
    let [magic, format, id_high, id_low, ram, count, sum] = *header.as_chunks::<8>().0 else {
        return Err(WorkingSetError::Short);
    };
    if magic != MAGIC {
        return Err(WorkingSetError::Magic);
    }
    let [a, b, c, d, ..] = format;
    let format = u32::from_le_bytes([a, b, c, d]);
    if !(1..=FORMAT).contains(&format) {
        return Err(WorkingSetError::Format(format));
    }
    let count = u64::from_le_bytes(count);
    if count > PAGES_MAX {
        return Err(WorkingSetError::TooLarge(count));
    }
    let mut tail = vec![0; usize::try_from(count * 4).unwrap_or(0)];
    read_at(file, &mut tail, HEADER_BYTES as u64)?;
    let (head, _) = header.split_at(HEADER_BYTES - 8);
    if checksum(head, &tail) != u64::from_le_bytes(sum) {
        return Err(WorkingSetError::Checksum);
    }
    if [id_high, id_low].as_flattened() != whose.id.as_bytes() || u64::from_le_bytes(ram) != whose.ram_bytes {
        return Err(WorkingSetError::Snapshot);
    }
    let pages: Vec<u32> = tail.as_chunks().0.iter().map(|page| u32::from_le_bytes(*page)).collect();
    let there = whose.ram_bytes / PAGE_BYTES;
    match pages.iter().find(|page| u64::from(**page) >= there) {
        Some(&page) => Err(WorkingSetError::Page { page, pages: there }),
        None => Ok(pages),
    }
}

fn read_at(file: &File, bytes: &mut [u8], at: u64) -> Result<(), WorkingSetError> {
    file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => WorkingSetError::Short,
        _ => WorkingSetError::Read(error),
    })
}

fn checksum(head: &[u8], tail: &[u8]) -> u64 {
    let mut digest = CRC.digest();
    digest.update(head);
    digest.update(tail);
    digest.finalize()
}

/// How the file begins.
pub(super) const MAGIC: [u8; 8] = *b"ec2vmset";
/// What this version writes, and the latest that it reads.
pub(super) const FORMAT: u32 = 1;
/// The most pages: 2 GiB. What a machine touches later is not in its working set.
pub(super) const PAGES_MAX: u64 = 1 << 19;
const HEADER_BYTES: usize = 56;

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::{PAGES_MAX, Whose, WorkingSetError, read, write};

    const PAGES: u64 = 100_000;
    const WHOSE: Whose = Whose { id: Uuid::from_u128(0x1234_5678_9abc), ram_bytes: PAGES * 4096 };

    fn written(pages: &[u32]) -> File {
        let file = tempfile::tempfile().unwrap();
        // What was there before is gone.
        file.write_all_at(&[0xff; 5000], 0).unwrap();
        write(&file, WHOSE, pages).unwrap();
        file
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_reason() {
        let refused = |spoil: &dyn Fn(&File)| {
            let file = written(&[1, 2, 3]);
            spoil(&file);
            read(&file, WHOSE).unwrap_err()
        };
        let put = |bytes: &'static [u8], at| refused(&move |file| file.write_all_at(bytes, at).unwrap());
        assert!(matches!(put(b"E", 0), WorkingSetError::Magic));
        assert!(matches!(put(&[2], 8), WorkingSetError::Format(2)));
        assert!(matches!(put(&[0], 8), WorkingSetError::Format(0)));
        assert!(matches!(put(&[9], 17), WorkingSetError::Checksum));
        assert!(matches!(put(&[0xff; 8], 40), WorkingSetError::TooLarge(u64::MAX)));
        assert!(matches!(put(&[4], 40), WorkingSetError::Short));
        assert!(matches!(put(&[9], 60), WorkingSetError::Checksum));
        assert!(matches!(refused(&|file| file.set_len(0).unwrap()), WorkingSetError::Short));
        let other = Whose { id: Uuid::nil(), ..WHOSE };
        assert!(matches!(read(&written(&[1]), other), Err(WorkingSetError::Snapshot)));
        let smaller = Whose { ram_bytes: 4096, ..WHOSE };
        assert!(matches!(read(&written(&[1]), smaller), Err(WorkingSetError::Snapshot)));
        let beyond = written(&[7, 100_000]);
        assert!(matches!(read(&beyond, WHOSE), Err(WorkingSetError::Page { page: 100_000, pages: PAGES })));
        let folder = File::open("/").unwrap();
        assert!(matches!(read(&folder, WHOSE), Err(WorkingSetError::Read(_))));
    }

    #[test]
    fn the_largest_is_read() {
        let pages: Vec<u32> = (0..u32::try_from(PAGES_MAX).unwrap()).collect();
        let whose = Whose { ram_bytes: PAGES_MAX * 4096, ..WHOSE };
        let file = tempfile::tempfile().unwrap();
        write(&file, whose, &pages).unwrap();
        assert_eq!(read(&file, whose).unwrap(), pages);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pages in prop::collection::vec(0..100_000_u32, 0..200)) {
            prop_assert_eq!(read(&written(&pages), WHOSE).unwrap(), pages);
        }

        #[test]
        fn no_damage_goes_unnoticed(at in 0..76_u64, bit in 0..8) {
            let file = written(&[5, 4, 3, 2, 1]);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1_u8 << bit], at).unwrap();
            prop_assert!(read(&file, WHOSE).is_err());
        }

        #[test]
        fn no_end_goes_unnoticed(end in 0..76_u64) {
            let file = written(&[5, 4, 3, 2, 1]);
            file.set_len(end).unwrap();
            prop_assert!(matches!(read(&file, WHOSE), Err(WorkingSetError::Short)));
        }

        #[test]
        fn no_content_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let file = written(&[]);
            file.write_all_at(&bytes, 8).unwrap();
            let _ = read(&file, WHOSE);
        }
    }
}
