//! Standard output and standard error of a command that must never wait for its reader: a signal, a key or
//! the end of the machine could come meanwhile.
//!
//! Invariant: nothing here waits. What cannot be written yet is kept, up to a size at which whoever
//! produces is not read from any more.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, Mode, OFlags},
    io::Errno,
    net::SendFlags,
};

/// An output of the command.
#[derive(Debug)]
pub(crate) struct Stream {
    descriptor: OwnedFd,
    /// Asked at the beginning: one that has hung up does not say so any more.
    is_terminal: bool,
    way: Way,
    pending: Vec<u8>,
    state: State,
    last: Option<u8>,
}

/// How to write without waiting.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    /// A description of our own, which does not wait. Whoever shares the other one never notices.
    Ours,
    /// A socket can be told for each write.
    Socket,
    /// A file is always ready; for the rest, a little whenever there is room.
    Shared,
}

/// Whether anybody reads; what is worse is greater.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum State {
    /// As far as is known.
    Open,
    /// Not any more.
    Closed,
    /// It is a terminal that has hung up: whether this or `SIGHUP` is noticed first is chance.
    HungUp,
}

impl Stream {
    pub(crate) fn stdout() -> io::Result<Self> {
        Self::new(rustix::stdio::stdout())
    }

    pub(crate) fn stderr() -> io::Result<Self> {
        Self::new(rustix::stdio::stderr())
    }

    fn new(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(descriptor)?.st_mode);
        let (descriptor, way) = match kind {
            FileType::Socket => (descriptor.try_clone_to_owned()?, Way::Socket),
            FileType::Fifo | FileType::CharacterDevice => match reopen(descriptor) {
                Ok(ours) => (ours, Way::Ours),
                Err(_) => (descriptor.try_clone_to_owned()?, Way::Shared),
            },
            _ => (descriptor.try_clone_to_owned()?, Way::Shared),
        };
        let is_terminal = rustix::termios::isatty(&descriptor);
        Ok(Self { descriptor, is_terminal, way, pending: Vec::new(), state: State::Open, last: None })
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Whoever produces may go on.
    pub(crate) fn has_room(&self) -> bool {
        self.pending.len() < PENDING_BYTES
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.pending.is_empty()
    }

    /// What was written last leaves the cursor within a line.
    pub(crate) fn is_within_line(&self) -> bool {
        self.last.is_some_and(|byte| byte != b'\n')
    }

    /// What to poll for: room if something is to be written, else only whether the reader goes.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.is_flushed() { PollFlags::empty() } else { PollFlags::OUT }
    }

    /// What a poll said.
    pub(crate) fn notice(&mut self, ready: PollFlags) -> io::Result<()> {
        if ready.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            self.close();
        }
        self.flush()
    }

    /// Writes now what can be written, and keeps the rest.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.state != State::Open {
            return Ok(());
        }
        self.last = bytes.last().copied().or(self.last);
        self.pending.extend_from_slice(bytes);
        self.flush()
    }

    /// Writes all of it, or as much as can be written until then.
    pub(crate) fn flush_until(&mut self, deadline: Instant) -> io::Result<()> {
        self.flush()?;
        while !self.is_flushed() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let mut waiting = [PollFd::new(&self.descriptor, PollFlags::OUT)];
            match poll(&mut waiting, timespec(left).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match self.write_some() {
                Ok(written) => {
                    self.pending.drain(..written.min(self.pending.len()));
                }
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(()),
                // EIO: the terminal has hung up.
                Err(Errno::PIPE | Errno::CONNRESET | Errno::IO) => self.close(),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn write_some(&self) -> rustix::io::Result<usize> {
        match self.way {
            Way::Ours => rustix::io::write(&self.descriptor, &self.pending),
            Way::Socket => {
                rustix::net::send(&self.descriptor, &self.pending, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            }
            Way::Shared => {
                let mut ready = [PollFd::new(&self.descriptor, PollFlags::OUT)];
                poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
                let has_room = ready.iter().any(|ready| !ready.revents().is_empty());
                let piece = self.pending.get(..PIECE_BYTES).unwrap_or(&self.pending);
                if has_room { rustix::io::write(&self.descriptor, piece) } else { Err(Errno::WOULDBLOCK) }
            }
        }
    }

    fn close(&mut self) {
        self.state = if self.is_terminal { State::HungUp } else { State::Closed };
        self.pending.clear();
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn reopen(descriptor: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{}", descriptor.as_raw_fd()), flags, Mode::empty())
}

/// A time to poll for, or for ever if it is beyond what can be said.
pub(crate) fn timespec(time: Duration) -> Option<Timespec> {
    Timespec::try_from(time).ok()
}

const PENDING_BYTES: usize = 64 * 1024;
/// A pipe that is ready takes this much without waiting (`PIPE_BUF`, pipe(7)).
const PIECE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::{fd::AsFd, unix::net::UnixStream},
        time::Instant,
    };

    use super::{State, Stream, Way};

    #[test]
    fn a_pipe_that_nobody_reads_does_not_block() {
        let (reader, writer) = std::io::pipe().unwrap();
        check(reader, &Stream::new(writer.as_fd()).map(|stream| (stream, Way::Ours)).unwrap().0.way, || {
            Stream::new(writer.as_fd()).unwrap()
        });
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "others share it");
    }

    #[test]
    fn a_socket_that_nobody_reads_does_not_block() {
        let (reader, writer) = UnixStream::pair().unwrap();
        check(reader, &Way::Socket, || Stream::new(writer.as_fd()).unwrap());
    }

    #[test]
    fn a_reader_that_goes_is_noticed() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut stream = Stream::new(writer.as_fd()).unwrap();
        drop(reader);
        stream.write(b"to nobody").unwrap();
        assert_eq!(stream.state(), State::Closed);
        assert!(stream.is_flushed());
    }

    fn check(mut reader: impl Read, way: &Way, stream: impl Fn() -> Stream) {
        let mut stream = stream();
        assert_eq!(stream.way, *way);
        let sent = vec![b'x'; 1 << 20];
        stream.write(&sent).unwrap();
        assert!(!stream.has_room() && !stream.is_flushed());
        stream.flush_until(Instant::now()).unwrap();
        let mut received = 0;
        let mut buffer = vec![0; 1 << 16];
        while received < sent.len() {
            received += reader.read(&mut buffer).unwrap();
            stream.write(b"").unwrap();
        }
        assert!(stream.is_flushed() && stream.is_within_line());
    }
}
