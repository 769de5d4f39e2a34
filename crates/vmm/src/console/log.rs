//! Keeps the end of what the guest prints in a file ([`ec2vmm_vmm_api::console_log`]), so that it is there
//! when the machine is not, however it ended.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use ec2vmm_vmm_api::console_log::{self, FILE_BYTES, SLACK_BYTES, Slot};
use rustix::{fs::FallocateFlags, io::Errno};

/// The file, and how far it is written.
pub(super) struct ConsoleLog {
    file: File,
    printed: u64,
    turn: u64,
    /// Bytes that could not be written; said once.
    lost: u64,
}

impl ConsoleLog {
    /// Begins a new log. The file's place on the disk is taken at once, so that a disk that fills up later
    /// takes nothing from it.
    pub(super) fn new(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        file.set_len(0)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, FILE_BYTES) {
            Ok(()) => {}
            // A file system that cannot promise room.
            Err(Errno::OPNOTSUPP) => file.set_len(FILE_BYTES)?,
            Err(error) => return Err(error.into()),
        }
        file.write_all_at(&console_log::header(), 0)?;
        Ok(Self { file, printed: 0, turn: 0, lost: 0 })
    }

    /// The guest has printed. What cannot be written is counted, and does not trouble the guest.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE_BYTES) {
            if let Err(error) = self.write(piece) {
                if self.lost == 0 {
                    log::warn!("writing the console's log: {error}");
                }
                self.lost += piece.len() as u64;
            }
        }
    }

    pub(super) fn lost_bytes(&self) -> u64 {
        self.lost
    }

    /// First the bytes, then the promise that they are there.
    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        let (at, room) = console_log::place(self.printed);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let (first, second) = piece.split_at_checked(room).unwrap_or((piece, &[]));
        self.file.write_all_at(first, at)?;
        if !second.is_empty() {
            self.file.write_all_at(second, console_log::HEADER_BYTES)?;
        }
        let printed = self.printed + piece.len() as u64;
        let slot = Slot::new(self.turn + 1, printed);
        self.file.write_all_at(&slot.bytes, slot.offset)?;
        (self.printed, self.turn) = (printed, self.turn + 1);
        Ok(())
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a few thousand")]
const PIECE_BYTES: usize = SLACK_BYTES as usize;

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use ec2vmm_vmm_api::{config::CONSOLE_LOG_BYTES, console_log};
    use proptest::prelude::{any, prop, proptest};

    use super::ConsoleLog;

    proptest! {
        #[test]
        fn what_was_printed_last_is_read_again(
            pieces in prop::collection::vec((any::<u8>(), 0usize..20_000), 0..20),
        ) {
            let mut file = tempfile::tempfile().unwrap();
            let mut log = ConsoleLog::new(file.try_clone().unwrap().into()).unwrap();
            let mut all = Vec::new();
            for (seed, len) in pieces {
                let piece: Vec<u8> = (0..=255).cycle().skip(seed.into()).take(len).collect();
                log.append(&piece);
                all.extend(piece);
            }
            let mut content = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut content).unwrap();
            let end = all.len().saturating_sub(usize::try_from(CONSOLE_LOG_BYTES).unwrap());
            assert!(console_log::read(&content).unwrap() == all[end..]);
            assert_eq!(log.lost_bytes(), 0);
        }
    }

    #[test]
    fn the_log_of_a_start_is_its_own() {
        let file = tempfile::tempfile().unwrap();
        ConsoleLog::new(file.try_clone().unwrap().into()).unwrap().append(b"before");
        ConsoleLog::new(file.try_clone().unwrap().into()).unwrap().append(b"now");
        let mut content = vec![0; usize::try_from(console_log::FILE_BYTES).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut content, 0).unwrap();
        assert_eq!(console_log::read(&content).unwrap(), b"now");
    }
}
