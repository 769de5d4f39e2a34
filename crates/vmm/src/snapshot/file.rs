//! A [`Document`] in a state file.

use std::io::{self, Read, Write};

pub use ec2vmm_snapshot::StateFileError as FileError;
use ec2vmm_snapshot::{read_document, write_document};

use super::document::Document;

/// Writes a document. How many bytes the file has.
///
/// # Errors
/// The file takes no more.
pub fn write(document: &Document, to: &mut impl Write) -> io::Result<u64> {
    write_document(&serde_json::to_vec(document)?, to)
}

/// Reads what [`write`] has written, now or in an earlier version.
///
/// # Errors
/// See [`FileError`].
pub fn read(from: &mut impl Read) -> Result<Document, FileError> {
    serde_json::from_slice(&read_document(from)?).map_err(FileError::Document)
}

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
        file.extend(ec2vmm_snapshot::CRC.checksum(text).to_le_bytes());
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
