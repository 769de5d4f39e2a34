//! `--console FILE`: what the machine prints, bounded.
//!
//! Invariant: the file never holds more than [`BYTES_MAX`]. When it would, its older half goes, up to the
//! end of a line, and the newer half moves to the front; so it always ends with the newest output.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use rustix::fs::FlockOperation;

use crate::error::{Error, kind_of_path};

/// A bounded file.
#[derive(Debug)]
pub(crate) struct ConsoleFile {
    file: File,
    length: u64,
    length_max: u64,
}

impl ConsoleFile {
    /// Begins anew, whatever the file held.
    pub(crate) fn create(path: &Path) -> Result<Self, Error> {
        let failed = |error: io::Error| {
            Error::new(
                kind_of_path(&error),
                format!("cannot write console output to {}: {error}", path.display()),
            )
        };
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            return Err(failed(io::Error::other("not a regular file")));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        // Two machines would garble it; and a disk of this machine, which is locked, must not be emptied.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| failed(io::Error::other("the file is in use by another machine, or as a disk")))?;
        file.set_len(0).map_err(failed)?;
        Ok(Self { file, length: 0, length_max: BYTES_MAX })
    }

    /// Adds output at the end.
    pub(crate) fn write(&mut self, output: &[u8]) -> io::Result<()> {
        let half = self.length_max / 2;
        for piece in output.chunks(usize::try_from(half.max(1)).unwrap_or(usize::MAX)) {
            let bytes = piece.len() as u64;
            if self.length.saturating_add(bytes) > self.length_max {
                self.keep_newest(half)?;
            }
            self.file.write_all_at(piece, self.length)?;
            self.length = self.length.saturating_add(bytes);
        }
        Ok(())
    }

    fn keep_newest(&mut self, bytes: u64) -> io::Result<()> {
        let mut from = self.next_line(self.length.saturating_sub(bytes))?;
        let mut to = 0;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let read = self.file.read_at(&mut buffer, from)?;
            let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else { break };
            self.file.write_all_at(piece, to)?;
            from = from.saturating_add(read as u64);
            to = to.saturating_add(read as u64);
        }
        self.file.set_len(to)?;
        self.length = to;
        Ok(())
    }

    /// Where the next line starts, if one does soon.
    fn next_line(&self, offset: u64) -> io::Result<u64> {
        let mut buffer = vec![0; COPY_BYTES];
        let read = self.file.read_at(&mut buffer, offset)?;
        let end = buffer.iter().take(read).position(|&byte| byte == b'\n');
        Ok(end.map_or(offset, |end| offset.saturating_add(end as u64).saturating_add(1)))
    }
}

const BYTES_MAX: u64 = 16 * 1024 * 1024;
const COPY_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::ConsoleFile;

    #[test]
    fn whole_lines_of_the_newest_half_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        std::fs::write(&path, "from another machine").unwrap();
        let mut console = ConsoleFile { length_max: 32, ..ConsoleFile::create(&path).unwrap() };
        for line in ["line one\n", "line two\n", "line three\n"] {
            console.write(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "line one\nline two\nline three\n");
        console.write(b"line four\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "line three\nline four\n");
    }

    #[test]
    fn one_machine_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let _console = ConsoleFile::create(&path).unwrap();
        assert!(ConsoleFile::create(&path).unwrap_err().to_string().contains("in use"));
        assert!(ConsoleFile::create(folder.path()).is_err());
        assert!(ConsoleFile::create(std::path::Path::new("/dev/null")).is_err());
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_ends_with_the_newest(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("console");
            let mut console = ConsoleFile { length_max: 100, ..ConsoleFile::create(&path).unwrap() };
            for piece in &pieces {
                console.write(piece).unwrap();
            }
            let all = pieces.concat();
            let kept = std::fs::read(&path).unwrap();
            prop_assert!(kept.len() <= 100 && all.ends_with(&kept));
            prop_assert!(all.len() > 100 || kept == all);
        }
    }
}
