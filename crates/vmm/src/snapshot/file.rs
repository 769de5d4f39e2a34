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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Document, FileError, read, write};

    /// Of a tiny guest.
    const STATE: &[u8] = include_bytes!("../../tests/tiny_guests/snapshots/format-1/state");

    fn document() -> Document {
        read(&mut &*STATE).unwrap()
    }

    /// The document as JSON, and back.
    fn changed(change: impl FnOnce(&mut serde_json::Value)) -> Result<Document, FileError> {
        let mut value = serde_json::to_value(document()).unwrap();
        change(&mut value);
        reread(&serde_json::to_vec(&value).unwrap())
    }

    /// What is read from a file with this text and all that belongs before it.
    fn reread(text: &[u8]) -> Result<Document, FileError> {
        let mut file = STATE[..16].to_vec();
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(super::CRC.checksum(text).to_le_bytes());
        file.extend(text);
        read(&mut file.as_slice())
    }

    #[test]
    fn what_is_written_is_read() {
        let mut file = Vec::new();
        let bytes = write(&document(), &mut file).unwrap();
        assert_eq!(bytes, file.len() as u64);
        let again = read(&mut file.as_slice()).unwrap();
        assert_eq!(serde_json::to_value(again).unwrap(), serde_json::to_value(document()).unwrap());
    }

    #[test]
    fn what_a_later_version_adds_is_no_obstacle() {
        changed(|value| value["some day"] = true.into()).unwrap();
        changed(|value| value["vcpus"][0]["some day"] = true.into()).unwrap();
    }

    #[test]
    fn a_document_that_makes_no_sense_is_refused() {
        let missing = changed(|value| drop(value.as_object_mut().unwrap().remove("vm")));
        assert!(matches!(missing, Err(FileError::Document(_))));
        let short = changed(|value| value["vcpus"][0]["regs"] = "00".into());
        assert!(matches!(short, Err(FileError::Document(_))));
        let deep = vec![b'['; 1 << 20];
        assert!(matches!(reread(&deep), Err(FileError::Document(_))));
        assert!(matches!(read(&mut &b"ec2vsnap"[..]), Err(FileError::Short)));
        assert!(matches!(read(&mut &[0; 99][..]), Err(FileError::Magic)));
    }

    proptest! {
        #[test]
        fn no_damage_goes_unnoticed(at in 0..STATE.len(), bit in 0..8) {
            let mut file = STATE.to_vec();
            file[at] ^= 1_u8 << bit;
            // Bytes 12 to 15 are of no use yet.
            prop_assert_eq!(read(&mut file.as_slice()).is_ok(), (12..16).contains(&at));
        }

        #[test]
        fn no_end_goes_unnoticed(end in 0..STATE.len()) {
            prop_assert!(matches!(read(&mut &STATE[..end]), Err(FileError::Short)));
        }

        #[test]
        fn no_document_panics(at in 32..STATE.len(), bytes in prop::collection::vec(any::<u8>(), 1..9)) {
            let mut text = STATE[32..].to_vec();
            let at = at - 32;
            for (to, from) in text[at..].iter_mut().zip(bytes) {
                *to = from;
            }
            let _ = reread(&text);
        }
    }
}
