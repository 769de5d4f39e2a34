//! Bytes on their way to somebody who must never be waited for.
//!
//! Invariant: no more than a given number of bytes waits. Beyond that, the oldest are dropped.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};

/// A descriptor and what it has not taken yet.
pub struct Outlet {
    file: File,
    waiting: VecDeque<u8>,
    capacity: usize,
    dropped: u64,
}

impl Outlet {
    /// Nothing waits yet; at most `capacity` bytes ever do. Neither writes nor reads block from here on.
    ///
    /// # Errors
    /// The descriptor cannot be made so.
    pub fn new(descriptor: OwnedFd, capacity: usize) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        Ok(Self { file: descriptor.into(), waiting: VecDeque::new(), capacity, dropped: 0 })
    }

    /// Writes what can be written; the rest waits for [`Self::flush`].
    ///
    /// # Errors
    /// Nobody is there any more.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.flush()?;
        let written = if self.waiting.is_empty() { write(&mut self.file, bytes)? } else { 0 };
        let rest = bytes.get(written..).unwrap_or_default();
        let room = self.capacity.saturating_sub(rest.len());
        let old = self.waiting.len().saturating_sub(room);
        self.waiting.drain(..old);
        let skipped = rest.len().saturating_sub(self.capacity);
        self.waiting.extend(rest.get(skipped..).unwrap_or_default());
        self.dropped += (old + skipped) as u64;
        Ok(())
    }

    /// Writes what waits, as far as it is taken.
    ///
    /// # Errors
    /// Nobody is there any more.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let (first, second) = self.waiting.as_slices();
            let piece = if first.is_empty() { second } else { first };
            let len = piece.len();
            let written = write(&mut self.file, piece)?;
            self.waiting.drain(..written);
            if written < len {
                return Ok(());
            }
        }
        if self.waiting.capacity() > CAPACITY_KEPT {
            // A burst is over: its memory goes back.
            self.waiting = VecDeque::new();
        }
        Ok(())
    }

    /// Writes what waits, for a slow reader too, until `deadline`.
    ///
    /// # Errors
    /// Nobody is there any more, or nobody reads.
    pub fn finish(&mut self, deadline: Instant) -> io::Result<()> {
        loop {
            self.flush()?;
            if self.waiting.is_empty() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], Some(&timespec(left))) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What the descriptor is read from, where it is one for both directions.
    pub fn reader(&mut self) -> &mut File {
        &mut self.file
    }

    /// Bytes that were dropped since the start.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped
    }
}

impl AsRawFd for Outlet {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Writes as much as is taken.
fn write(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

fn timespec(duration: Duration) -> Timespec {
    let tv_sec = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: duration.subsec_nanos().into() }
}

const CAPACITY_KEPT: usize = 4096;

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read},
        os::unix::net::UnixStream,
        time::Instant,
    };

    use super::Outlet;

    #[test]
    fn the_oldest_of_what_waits_is_dropped() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let mut outlet = Outlet::new(writer.into(), 1000).unwrap();
        // The socket takes the first of it; then it waits.
        let mut put = Vec::new();
        for number in 0_u64..200_000 {
            outlet.put(&number.to_le_bytes()).unwrap();
            put.extend(number.to_le_bytes());
        }
        assert_eq!(outlet.finish(Instant::now()).unwrap_err().kind(), ErrorKind::TimedOut);
        let taken = put.len() - 1000 - usize::try_from(outlet.dropped_bytes()).unwrap();
        let mut head = vec![0; taken];
        reader.read_exact(&mut head).unwrap();
        assert!(head == put[..taken]);
        outlet.flush().unwrap();
        drop(outlet);
        let mut tail = Vec::new();
        reader.read_to_end(&mut tail).unwrap();
        assert!(tail == put[put.len() - 1000..]);
    }

    #[test]
    fn more_than_fits_at_once() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let mut outlet = Outlet::new(writer.into(), 4).unwrap();
        outlet.put(&vec![b'-'; 1 << 22]).unwrap();
        outlet.put(b"abcdef").unwrap();
        assert_eq!(outlet.waiting, b"cdef");
        drop(outlet);
        reader.read_to_end(&mut Vec::new()).unwrap();
    }

    #[test]
    fn nobody_there() {
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        let mut outlet = Outlet::new(writer.into(), 4).unwrap();
        assert_eq!(outlet.put(b"a").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
