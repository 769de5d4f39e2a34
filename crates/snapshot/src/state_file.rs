//! The state file of a snapshot: a header of 32 bytes, and a document in JSON.
//!
//! | bytes | what |
//! |---|---|
//! | 0 to 7 | [`MAGIC`] |
//! | 8 to 11 | [`FORMAT`], u32 LE |
//! | 12 to 15 | zero |
//! | 16 to 23 | bytes of the document, u64 LE |
//! | 24 to 31 | CRC-64/XZ of the document, u64 LE |
//! | from 32 | the document |
//!
//! The document names its fields, so that a later version can add some, with defaults, and still read what
//! this one has written. The format's number changes only where that is not enough.
//!
//! The checksum finds accidents, not forgeries: whoever can write a snapshot decides what the guest
//! executes, and nothing else.

use std::io::{self, Read, Write};

use serde::Deserialize;
use uuid::Uuid;

use crate::CRC;

/// A state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// Not even the beginning is right.
    #[error("not the state of a machine: it does not start with the magic number")]
    Magic,
    /// Of a later version.
    #[error("the state is in format {0}, and this ec2vmm reads formats 1 to {FORMAT}")]
    Format(u32),
    /// Longer than any machine's.
    #[error("the state takes {0} bytes, and no machine's takes more than {DOCUMENT_BYTES_MAX}")]
    TooLarge(u64),
    /// It ends before its end.
    #[error("the state is cut short")]
    Short,
    /// It was damaged.
    #[error("the state is damaged: its checksum is not what it was")]
    Checksum,
    /// Whole, but not as this version knows it.
    #[error("the state makes no sense")]
    Document(#[source] serde_json::Error),
    /// The system refused.
    #[error("reading the state")]
    Read(#[source] io::Error),
}

/// Of a document, what tells which files belong to it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
pub struct Head {
    /// The snapshot's name, which its memory file bears too.
    pub id: Uuid,
    /// What has to be there for the machine to go on.
    shape: Shape,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
struct Shape {
    memory_mib: u64,
}

impl Head {
    /// Bytes of RAM. None: more than there are addresses for.
    pub fn ram_bytes(&self) -> Option<u64> {
        self.shape.memory_mib.checked_mul(1 << 20).filter(|bytes| *bytes <= RAM_BYTES_MAX)
    }
}

/// Writes a document. How many bytes the file has.
///
/// # Errors
/// The file takes no more.
pub fn write_document(document: &[u8], to: &mut impl Write) -> io::Result<u64> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend(MAGIC);
    header.extend(FORMAT.to_le_bytes());
    header.extend([0; 4]);
    header.extend((document.len() as u64).to_le_bytes());
    header.extend(CRC.checksum(document).to_le_bytes());
    to.write_all(&header)?;
    to.write_all(document)?;
    Ok((header.len() + document.len()) as u64)
}

/// Reads what [`write_document`] has written, now or in an earlier version.
///
/// # Errors
/// All of [`StateFileError`] but `Document`.
pub fn read_document(from: &mut impl Read) -> Result<Vec<u8>, StateFileError> {
    let mut header = [0; HEADER_BYTES];
    read_exact(from, &mut header)?;
    let [magic, format, length, checksum] = header.as_chunks::<8>().0 else {
        return Err(StateFileError::Short);
    };
    if *magic != MAGIC {
        return Err(StateFileError::Magic);
    }
    let [a, b, c, d, ..] = *format;
    let format = u32::from_le_bytes([a, b, c, d]);
    if !(1..=FORMAT).contains(&format) {
        return Err(StateFileError::Format(format));
    }
    let length = u64::from_le_bytes(*length);
    if length > DOCUMENT_BYTES_MAX {
        return Err(StateFileError::TooLarge(length));
    }
    // Memory grows with what is there, not with what the header says.
    let mut text = Vec::new();
    from.take(length).read_to_end(&mut text).map_err(StateFileError::Read)?;
    if text.len() as u64 != length {
        return Err(StateFileError::Short);
    }
    if CRC.checksum(&text) != u64::from_le_bytes(*checksum) {
        return Err(StateFileError::Checksum);
    }
    Ok(text)
}

/// Reads what a document says of itself.
///
/// # Errors
/// `Document`: it is none.
pub fn read_head(document: &[u8]) -> Result<Head, StateFileError> {
    serde_json::from_slice(document).map_err(StateFileError::Document)
}

fn read_exact(from: &mut impl Read, bytes: &mut [u8]) -> Result<(), StateFileError> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => StateFileError::Short,
        _ => StateFileError::Read(error),
    })
}

/// How the file begins.
pub(crate) const MAGIC: [u8; 8] = *b"ec2vsnap";
/// What this version writes, and the latest that it reads.
pub(crate) const FORMAT: u32 = 1;
/// The largest document: some 64 vCPUs and 31 devices, ten times over.
const DOCUMENT_BYTES_MAX: u64 = 32 << 20;
/// The largest state file.
pub const STATE_BYTES_MAX: u64 = DOCUMENT_BYTES_MAX + HEADER_BYTES as u64;
/// What a processor can address physically (52 bits).
const RAM_BYTES_MAX: u64 = 1 << 52;
const HEADER_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{StateFileError, read_document, read_head, write_document};

    const ID: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

    fn file(document: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        assert_eq!(write_document(document, &mut file).unwrap(), file.len() as u64);
        file
    }

    #[test]
    fn a_head_says_which_files_belong_to_it() {
        let head = |mib: u64| {
            read_head(format!(r#"{{"id":"{ID}","more":1,"shape":{{"memory_mib":{mib}}}}}"#).as_bytes())
        };
        let known = head(32).unwrap();
        assert_eq!((known.id.to_string().as_str(), known.ram_bytes()), (ID, Some(32 << 20)));
        assert_eq!(head(u64::MAX).unwrap().ram_bytes(), None);
        assert_eq!(head(1 << 33).unwrap().ram_bytes(), None);
        assert!(matches!(read_head(b"{}"), Err(StateFileError::Document(_))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(document in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(read_document(&mut file(&document).as_slice()).unwrap(), document);
        }

        #[test]
        fn no_damage_goes_unnoticed(at in 0..64_usize, bit in 0..8) {
            let mut file = file(&[7; 32]);
            file[at] ^= 1_u8 << bit;
            // Bytes 12 to 15 are of no use yet.
            prop_assert_eq!(read_document(&mut file.as_slice()).is_ok(), (12..16).contains(&at));
        }

        #[test]
        fn no_end_goes_unnoticed(end in 0..64_usize) {
            prop_assert!(matches!(read_document(&mut &file(&[7; 32])[..end]), Err(StateFileError::Short)));
        }
    }
}
