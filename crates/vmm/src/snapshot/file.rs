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

use super::document::Document;

/// A state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
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

/// Writes a document.
///
/// # Errors
/// The file takes no more.
pub fn write(document: &Document, to: &mut impl Write) -> io::Result<u64> {
    let text = serde_json::to_vec(document)?;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend(MAGIC);
    header.extend(FORMAT.to_le_bytes());
    header.extend([0; 4]);
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(CRC.checksum(&text).to_le_bytes());
    to.write_all(&header)?;
    to.write_all(&text)?;
    Ok((header.len() + text.len()) as u64)
}

/// Reads what [`write`] has written, now or in an earlier version.
///
/// # Errors
/// See [`FileError`].
pub fn read(from: &mut impl Read) -> Result<Document, FileError> {
    let mut header = [0; HEADER_BYTES];
    read_exact(from, &mut header)?;
    let [magic @ .., _, _, _] = header.as_chunks::<8>().0 else { return Err(FileError::Short) };
    if *magic != [MAGIC] {
        return Err(FileError::Magic);
    }
    let [_, format, length, checksum] = header.as_chunks::<8>().0 else { return Err(FileError::Short) };
    let [a, b, c, d, ..] = *format;
    let format = u32::from_le_bytes([a, b, c, d]);
    if !(1..=FORMAT).contains(&format) {
        return Err(FileError::Format(format));
    }
    let length = u64::from_le_bytes(*length);
    if length > DOCUMENT_BYTES_MAX {
        return Err(FileError::TooLarge(length));
    }
    // Memory grows with what is there, not with what the header says.
    let mut text = Vec::new();
    from.take(length).read_to_end(&mut text).map_err(FileError::Read)?;
    if text.len() as u64 != length {
        return Err(FileError::Short);
    }
    if CRC.checksum(&text) != u64::from_le_bytes(*checksum) {
        return Err(FileError::Checksum);
    }
    serde_json::from_slice(&text).map_err(FileError::Document)
}

fn read_exact(from: &mut impl Read, bytes: &mut [u8]) -> Result<(), FileError> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FileError::Short,
        _ => FileError::Read(error),
    })
}

/// How the file begins.
pub const MAGIC: [u8; 8] = *b"ec2vsnap";
/// What this version writes, and the latest that it reads.
pub const FORMAT: u32 = 1;
/// The largest document: some 64 vCPUs and 31 devices, ten times over.
pub const DOCUMENT_BYTES_MAX: u64 = 32 << 20;
const HEADER_BYTES: usize = 32;
pub(super) const CRC: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_XZ);
