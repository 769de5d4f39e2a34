//! What the guest has printed and nobody has read yet: a ring of bounded size between vCPU threads,
//! which must not wait, and a console that may be slow or gone.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The ring. Full, it forgets what is oldest.
pub struct ConsoleOutput {
    capacity: usize,
    ready: EventFd,
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    bytes: VecDeque<u8>,
    /// Bytes printed before the first in `bytes`.
    start: u64,
    dropped: u64,
}

/// How a drain has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Drained {
    /// Nothing more to do now. [`ConsoleOutput::ready`] says when there is more.
    All,
    /// The console takes no more now: drain again when it can be written. [`ConsoleOutput::ready`] is
    /// silent until then.
    Blocked,
}

/// Bytes of output that a console keeps for a reader that is slow or not there, unless told otherwise.
pub const CAPACITY: usize = 1 << 20;

impl ConsoleOutput {
    /// A ring of at most `capacity` bytes. Memory is taken as it fills.
    ///
    /// # Errors
    /// The host is out of descriptors or memory.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let ready = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { capacity, ready, ring: Mutex::default() })
    }

    /// Written when the ring was empty and is not any more.
    pub fn ready(&self) -> &EventFd {
        &self.ready
    }

    /// The guest prints.
    pub fn push(&self, bytes: &[u8]) {
        let mut ring = self.lock();
        let was_empty = ring.bytes.is_empty();
        for &byte in bytes {
            if ring.bytes.len() >= self.capacity && ring.bytes.pop_front().is_some() {
                ring.start += 1;
                ring.dropped += 1;
            }
            ring.bytes.push_back(byte);
        }
        drop(ring);
        if was_empty && !bytes.is_empty() {
            // Fails only where it is full: then the loop is about to hear of it.
            let _ = self.ready.write(1);
        }
    }

    /// Writes out what there is, until it is all written or `to` would block. The guest can print
    /// meanwhile; one that never stops is left for the next turn of the loop.
    ///
    /// # Errors
    /// `to` fails. What it did not take stays.
    pub fn drain(&self, to: &mut impl Write) -> io::Result<Drained> {
        // Taken first: what comes from here on is either seen below or heard of again.
        let _ = self.ready.read();
        let mut chunk = [0; CHUNK];
        let mut left = self.capacity;
        loop {
            if left == 0 {
                // Fails only where it is full: then there is a next turn anyway.
                let _ = self.ready.write(1);
                return Ok(Drained::All);
            }
            let (position, len) = self.peek(&mut chunk);
            let Some(bytes) = chunk.get(..len).filter(|bytes| !bytes.is_empty()) else {
                return Ok(Drained::All);
            };
            match to.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.forget(position + written as u64);
                    left = left.saturating_sub(written);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Drained::Blocked),
                Err(error) => return Err(error),
            }
        }
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that were forgotten unread since the start.
    pub fn dropped_bytes(&self) -> u64 {
        self.lock().dropped
    }

    /// Copies the oldest bytes. Returns their position in all that was printed, and how many they are.
    fn peek(&self, chunk: &mut [u8]) -> (u64, usize) {
        let ring = self.lock();
        let (first, second) = ring.bytes.as_slices();
        let from = if first.is_empty() { second } else { first };
        let len = from.len().min(chunk.len());
        chunk.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        (ring.start, len)
    }

    /// Forgets what was printed before this position, as far as the ring has not already.
    fn forget(&self, position: u64) {
        let mut ring = self.lock();
        let written = usize::try_from(position.saturating_sub(ring.start)).unwrap_or(usize::MAX);
        let written = written.min(ring.bytes.len());
        ring.bytes.drain(..written);
        ring.start += written as u64;
        if ring.bytes.is_empty() && ring.bytes.capacity() > CHUNK {
            // A burst is over: its memory goes back.
            ring.bytes = VecDeque::new();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes written at once.
const CHUNK: usize = 4096;

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind, Write};

    use proptest::prelude::{any, prop, proptest};

    use super::{ConsoleOutput, Drained};

    /// Takes so many bytes, then would block.
    struct Slow(Vec<u8>, usize);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let len = bytes.len().min(self.1);
            self.1 -= len;
            self.0.extend(&bytes[..len]);
            if len == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(len) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn wakes_once_and_drops_the_oldest() {
        let output = ConsoleOutput::new(4).unwrap();
        output.push(b"ab");
        output.push(b"cdef");
        assert_eq!(output.ready().read().unwrap(), 1);
        assert_eq!(output.dropped_bytes(), 2);
        let mut slow = Slow(Vec::new(), 3);
        assert_eq!(output.drain(&mut slow).unwrap(), Drained::Blocked);
        output.push(b"g");
        assert!(output.ready().read().is_err(), "the loop already waits for the console");
        slow.1 = 9;
        assert_eq!(output.drain(&mut slow).unwrap(), Drained::All);
        assert_eq!(slow.0, b"cdefg");
        output.push(b"h");
        assert_eq!(output.ready().read().unwrap(), 1);
    }

    #[test]
    fn bytes_dropped_while_they_are_written_are_not_forgotten_twice() {
        /// Prints while it writes.
        struct Busy<'a>(&'a ConsoleOutput, Vec<u8>, usize);

        impl Write for Busy<'_> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if self.2 > 0 {
                    self.2 -= 1;
                    self.0.push(b"xyz");
                }
                self.1.extend(&bytes[..1]);
                Ok(1)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let output = ConsoleOutput::new(4).unwrap();
        output.push(b"abcd");
        let mut busy = Busy(&output, Vec::new(), 1);
        assert_eq!(output.drain(&mut busy).unwrap(), Drained::All);
        assert_eq!(busy.1, b"adxy");
        output.ready().read().expect("there is more");
        assert_eq!(output.drain(&mut busy).unwrap(), Drained::All);
        assert_eq!(busy.1, b"adxyz");
        assert_eq!(output.dropped_bytes(), 3);
    }

    proptest! {
        #[test]
        fn everything_comes_out_in_order(
            pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..9), 0usize..20), 1..50),
        ) {
            let output = ConsoleOutput::new(1 << 16).unwrap();
            let mut slow = Slow(Vec::new(), 0);
            let mut printed = Vec::new();
            for (piece, room) in pieces {
                output.push(&piece);
                printed.extend(piece);
                slow.1 = room;
                output.drain(&mut slow).unwrap();
            }
            slow.1 = usize::MAX;
            while !output.is_empty() {
                assert_eq!(output.drain(&mut slow).unwrap(), Drained::All);
            }
            assert_eq!(slow.0, printed);
        }
    }
}
