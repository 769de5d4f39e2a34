//! The file that keeps the end of what a serial console has shown ([`crate::MachineConfig::console_log`]).
//!
//! | bytes | what |
//! |---|---|
//! | 0 to 7 | [`MAGIC`] |
//! | 8 to 15 | [`FORMAT_VERSION`], u64 LE |
//! | 16 to 31, 32 to 47 | two [`Slot`]s, written in turn: bytes printed so far, and a check of that number, u64 LE each |
//! | from [`HEADER_BYTES`] | the ring: byte N of all that was printed is byte N modulo [`RING_BYTES`] |
//!
//! The ring has [`SLACK_BYTES`] more than are ever shown, and no more than so many are written before the
//! header says so. So what the header promises is whole at every moment, whenever the writer is killed.

use crate::config::CONSOLE_LOG_BYTES;

/// Where the ring begins.
pub const HEADER_BYTES: u64 = 4096;
/// The most that is written into the ring between two writes of the header.
pub const SLACK_BYTES: u64 = 4096;
/// Size of the ring.
pub const RING_BYTES: u64 = CONSOLE_LOG_BYTES + SLACK_BYTES;
/// Size of the file.
pub const FILE_BYTES: u64 = HEADER_BYTES + RING_BYTES;
/// How the file begins.
pub const MAGIC: [u8; 8] = *b"ec2vmlog";
/// What follows the magic number.
pub const FORMAT_VERSION: u64 = 1;

/// Why a file is no console log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// Not even the beginning is right.
    #[error("not a console log: it does not start with the magic number")]
    Magic,
    /// Of another version than [`FORMAT_VERSION`].
    #[error("a console log of version {0}, and {FORMAT_VERSION} is what is understood")]
    Version(u64),
    /// The file ends before its ring does.
    #[error("the console log ends after {0} bytes, of {FILE_BYTES}")]
    Short(usize),
    /// Neither of the two slots is whole.
    #[error("the console log's header is broken: it does not say how much was written")]
    Header,
}

/// One of the two places for the number of bytes printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Slot {
    /// Where it is in the file.
    pub offset: u64,
    /// What is there.
    pub bytes: [u8; SLOT_BYTES],
}

impl Slot {
    /// What to write after the `turn`th piece, when `printed` bytes are in the ring or were.
    pub fn new(turn: u64, printed: u64) -> Self {
        let mut bytes = [0; SLOT_BYTES];
        let words = printed.to_le_bytes().into_iter().chain(check(printed).to_le_bytes());
        bytes.iter_mut().zip(words).for_each(|(to, from)| *to = from);
        Self { offset: SLOTS_START as u64 + (turn & 1) * SLOT_BYTES as u64, bytes }
    }
}

/// The file's first bytes, when nothing was printed yet.
pub fn header() -> Vec<u8> {
    let mut header = [MAGIC, FORMAT_VERSION.to_le_bytes()].concat();
    for turn in [0, 1] {
        header.extend(Slot::new(turn, 0).bytes);
    }
    header
}

/// Where byte `position` of all that was printed is in the file, and how many follow it there without a
/// jump to the beginning of the ring.
pub fn place(position: u64) -> (u64, u64) {
    let at = position % RING_BYTES;
    (HEADER_BYTES + at, RING_BYTES - at)
}

/// How many bytes were printed, of which the ring has the last. None for a file that is empty: the
/// machine has not come to its console yet.
///
/// # Errors
/// [`Error`].
pub fn printed(file: &[u8]) -> Result<u64, Error> {
    if file.is_empty() {
        return Ok(0);
    }
    if !file.starts_with(&MAGIC) {
        return Err(Error::Magic);
    }
    match word(file, MAGIC.len()) {
        Some(FORMAT_VERSION) => {}
        Some(version) => return Err(Error::Version(version)),
        None => return Err(Error::Short(file.len())),
    }
    let slot = |index: usize| {
        let at = SLOTS_START + index * SLOT_BYTES;
        word(file, at).filter(|&printed| word(file, at + WORD_BYTES) == Some(check(printed)))
    };
    // One that was being written when the writer was killed is not whole; the other is.
    slot(0).max(slot(1)).ok_or(Error::Header)
}

/// The last [`CONSOLE_LOG_BYTES`] that were printed, in order; all of them, if there are fewer.
///
/// # Errors
/// [`Error`].
pub fn read(file: &[u8]) -> Result<Vec<u8>, Error> {
    let printed = printed(file)?;
    let mut position = printed.saturating_sub(CONSOLE_LOG_BYTES);
    let mut bytes = Vec::new();
    while position < printed {
        let (at, room) = place(position);
        let len = room.min(printed - position);
        let piece = usize::try_from(at).ok().zip(usize::try_from(len).ok());
        let piece = piece.and_then(|(at, len)| file.get(at..)?.get(..len)).ok_or(Error::Short(file.len()))?;
        bytes.extend_from_slice(piece);
        position += len;
    }
    Ok(bytes)
}

/// As [`read`], of a file that was written to while it was read: `printed_after` is what [`printed`] said
/// after the last byte was read. What may have been written over meanwhile is left out.
///
/// # Errors
/// [`Error`].
pub fn read_live(file: &[u8], printed_after: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = read(file)?;
    let since = printed_after.saturating_sub(printed(file)?);
    // The ring's slack is for the piece that is under way; the older of what is shown has gone for the rest,
    // if the ring was full.
    let shown = bytes.len() as u64;
    let spare = CONSOLE_LOG_BYTES - shown.min(CONSOLE_LOG_BYTES);
    let lost = usize::try_from(since.saturating_sub(spare)).unwrap_or(usize::MAX).min(bytes.len());
    bytes.drain(..lost);
    Ok(bytes)
}

fn word(file: &[u8], at: usize) -> Option<u64> {
    file.get(at..at + WORD_BYTES)?.try_into().ok().map(u64::from_le_bytes)
}

/// Of zeros, as of a file that was never written, the check is not zero.
fn check(printed: u64) -> u64 {
    printed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from_le_bytes(MAGIC)
}

const WORD_BYTES: usize = 8;
const SLOT_BYTES: usize = 16;
const SLOTS_START: usize = 16;

#[cfg(test)]
mod tests {
    use super::{
        Error, FILE_BYTES, HEADER_BYTES, SLACK_BYTES, Slot, header, place, printed, read, read_live,
    };
    use crate::config::CONSOLE_LOG_BYTES;

    /// A writer as the machine is one, killed at any point.
    struct Writer {
        file: Vec<u8>,
        printed: u64,
        turn: u64,
    }

    impl Writer {
        fn new() -> Self {
            let mut file = header();
            file.resize(usize::try_from(FILE_BYTES).unwrap(), 0);
            Self { file, printed: 0, turn: 0 }
        }

        fn put(&mut self, at: u64, bytes: &[u8]) {
            let at = usize::try_from(at).unwrap();
            self.file[at..at + bytes.len()].copy_from_slice(bytes);
        }

        fn data(&mut self, piece: &[u8]) {
            let (at, room) = place(self.printed);
            let (first, second) = piece.split_at(piece.len().min(usize::try_from(room).unwrap()));
            self.put(at, first);
            self.put(HEADER_BYTES, second);
        }

        fn write(&mut self, piece: &[u8]) {
            self.data(piece);
            self.printed += piece.len() as u64;
            self.turn += 1;
            let slot = Slot::new(self.turn, self.printed);
            self.put(slot.offset, &slot.bytes);
        }
    }

    fn text(from: u64, len: u64) -> Vec<u8> {
        (from..from + len).flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn the_end_of_what_was_printed_in_order() {
        let mut writer = Writer::new();
        let mut all = Vec::new();
        assert_eq!(read(&writer.file).unwrap(), b"");
        for number in 0..400 {
            let piece = text(number * 1000, number % 500);
            writer.write(&piece);
            all.extend(piece);
            let end = all.len().saturating_sub(usize::try_from(CONSOLE_LOG_BYTES).unwrap());
            assert!(read(&writer.file).unwrap() == all[end..], "piece {number}");
        }
        assert!(all.len() as u64 > 3 * CONSOLE_LOG_BYTES);
    }

    #[test]
    fn a_writer_that_is_killed_leaves_what_it_has_promised() {
        let mut writer = Writer::new();
        for number in 0..100 {
            writer.write(&text(number * 1000, 400));
        }
        let before = read(&writer.file).unwrap();
        // After the data, before the header.
        writer.data(&vec![b'!'; usize::try_from(SLACK_BYTES).unwrap()]);
        assert!(read(&writer.file).unwrap() == before);
        // In the middle of the header's slot.
        let slot = Slot::new(writer.turn + 1, writer.printed + SLACK_BYTES);
        writer.put(slot.offset, &slot.bytes[..5]);
        assert!(read(&writer.file).unwrap() == before);
    }

    #[test]
    fn what_was_written_over_while_it_was_read_is_left_out() {
        let mut writer = Writer::new();
        for number in 0..100 {
            writer.write(&text(number * 1000, 400));
        }
        let (mut torn, before) = (writer.file.clone(), read(&writer.file).unwrap());
        for _ in 0..3 {
            writer.write(&[b'!'; 1000]);
        }
        // The ring was read after that, the header before.
        let from = usize::try_from(HEADER_BYTES).unwrap();
        torn[from..].copy_from_slice(&writer.file[from..]);
        let seen = read_live(&torn, printed(&writer.file).unwrap()).unwrap();
        assert!(seen == before[3000..]);
        assert_eq!(read_live(&Writer::new().file, 99).unwrap(), b"");
    }

    #[test]
    fn what_is_no_console_log() {
        assert_eq!(read(b""), Ok(Vec::new()));
        assert_eq!(read(b"ec2"), Err(Error::Magic));
        assert_eq!(read(&[0; 9000]), Err(Error::Magic));
        let mut file = Writer::new().file;
        file[8] = 9;
        assert_eq!(read(&file), Err(Error::Version(9)));
        file[8] = 1;
        file[16..48].fill(0);
        assert_eq!(read(&file), Err(Error::Header));
        let mut writer = Writer::new();
        writer.write(b"hello");
        writer.file.truncate(4098);
        assert_eq!(read(&writer.file), Err(Error::Short(4098)));
        let huge = Slot::new(0, u64::MAX);
        writer = Writer::new();
        writer.put(huge.offset, &huge.bytes);
        assert_eq!(read(&writer.file).unwrap().len() as u64, CONSOLE_LOG_BYTES);
    }
}
