//! One client: its requests one after another, each answered before the next is looked at.
//!
//! Invariant: [`Connection::input`] holds at most one request of the largest size, and
//! [`Connection::output`] at most one answer, or [`STREAM_BYTES_MAX`] of one that has no end. A client that
//! does not read its answer is not read from; one that follows a stream and does not read is dropped.

use std::{
    io::{self, Read},
    net::Shutdown,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use ec2vmm_vmm_api::control::Problem;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::SendFlags,
};
use vmm_sys_util::epoll::EventSet;

use super::{
    Handler,
    descriptors::{DESCRIPTORS_MAX, Descriptors, TooMany},
    http::{self, Keep, Parsed, REQUEST_BYTES_MAX, Response},
    routes,
};

/// A connection and what is under way on it.
pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    descriptors: Descriptors,
    output: Vec<u8>,
    /// Before the input has this many bytes, there is no use in looking at it again.
    needed: usize,
    /// The client was told to go on with the body of this request.
    continued: bool,
    phase: Phase,
    /// The client sends no more.
    ended: bool,
    /// There is input that could be answered without more arriving.
    unfinished: bool,
    /// It has been answered before, so that saying nothing is rest, not slowness.
    answered: bool,
    idle: bool,
    since: Instant,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    Keep,
    Close,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Serving,
    /// The answer comes later, and this becomes of the connection then.
    Waiting(Keep),
    /// The answer has no end.
    Streaming,
    /// The last answer is on its way.
    Ending,
    /// It is out. What still comes in is thrown away, up to this many bytes, because closing before
    /// the client has sent all would take the answer from it.
    Draining(usize),
}

impl Connection {
    /// A client that has not spoken yet.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            descriptors: Descriptors::default(),
            output: Vec::new(),
            needed: 0,
            continued: false,
            phase: Phase::Serving,
            ended: false,
            unfinished: false,
            answered: false,
            idle: false,
            since: Instant::now(),
        }
    }

    /// Whether nothing is under way. A client that has not asked anything yet is about to.
    pub(super) fn is_idle(&self) -> bool {
        self.idle
    }

    /// How long it has been idle or busy.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether it follows a stream.
    pub(super) fn is_streaming(&self) -> bool {
        self.phase == Phase::Streaming
    }

    /// Whether it waits for an answer that comes later.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.phase, Phase::Waiting(_))
    }

    /// What it waits for. What else the client has said meanwhile is looked at in its turn.
    pub(super) fn answer_at_last(&mut self, response: &Response) -> Fate {
        let Phase::Waiting(keep) = self.phase else { return Fate::Keep };
        response.encode(keep, false, &mut self.output);
        self.phase = if keep == Keep::Close { Phase::Ending } else { Phase::Serving };
        self.unfinished = true;
        self.since = Instant::now();
        self.flush_or_close()
    }

    /// The stream that it follows goes on.
    pub(super) fn go_on(&mut self, bytes: &[u8]) -> Fate {
        if self.output.len() + bytes.len() > STREAM_BYTES_MAX {
            log::debug!("control connection: a stream is not read");
            return Fate::Close;
        }
        self.output.extend_from_slice(bytes);
        self.flush_or_close()
    }

    fn flush_or_close(&mut self) -> Fate {
        match self.flush() {
            Ok(_) => Fate::Keep,
            Err(error) => {
                log::debug!("control connection: {error}");
                Fate::Close
            }
        }
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.input.capacity() + self.output.capacity()
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> EventSet {
        match (self.output.is_empty(), self.unfinished) {
            (false, _) => EventSet::OUT,
            // The end of its input was heard, or is not waited for; that it has hung up is always heard.
            (true, _) if self.is_streaming() && self.ended || self.is_waiting() => EventSet::empty(),
            // It is writable, so that its turn comes again at once, after all others.
            (true, true) => EventSet::OUT | EventSet::IN,
            (true, false) => EventSet::IN,
        }
    }

    /// Does what can be done without waiting.
    pub(super) fn turn(&mut self, may_stream: bool, handler: &mut dyn Handler) -> Fate {
        let fate = self.try_turn(may_stream, handler).unwrap_or_else(|error| {
            log::debug!("control connection: {error}");
            Fate::Close
        });
        self.note_idleness();
        fate
    }

    fn try_turn(&mut self, may_stream: bool, handler: &mut dyn Handler) -> io::Result<Fate> {
        if !self.flush()? {
            return Ok(Fate::Keep);
        }
        if self.is_streaming() {
            return self.follow();
        }
        if self.is_waiting() {
            return self.hears();
        }
        if self.phase == Phase::Serving {
            self.receive()?;
        }
        self.unfinished = false;
        for _ in 0..REQUESTS_PER_TURN {
            let answered = self.phase == Phase::Serving && self.answer(may_stream, handler);
            if !self.flush()? {
                return Ok(Fate::Keep);
            }
            match self.phase {
                Phase::Serving if answered => {}
                Phase::Serving if self.ended => return Ok(Fate::Close),
                Phase::Serving => return Ok(Fate::Keep),
                Phase::Waiting(_) => return Ok(Fate::Keep),
                Phase::Streaming => return self.follow(),
                Phase::Ending => self.start_draining()?,
                Phase::Draining(left) => return self.drain(left),
            }
        }
        self.unfinished = true;
        Ok(Fate::Keep)
    }

    /// Answers the next request, if it is all there.
    fn answer(&mut self, may_stream: bool, handler: &mut dyn Handler) -> bool {
        if self.input.len() < self.needed.max(1) {
            return false;
        }
        match http::parse(&self.input) {
            Ok(Parsed::Incomplete { needed, wants_continue }) => {
                self.needed = needed;
                if wants_continue && !self.continued {
                    self.continued = true;
                    self.output.extend_from_slice(http::CONTINUE);
                }
                false
            }
            Ok(Parsed::Complete { request, bytes }) => {
                let descriptors = self.descriptors.take(bytes);
                let response = routes::respond(&request, descriptors, may_stream, handler);
                let head_only = request.method == "HEAD";
                if response.is_later() {
                    self.phase = Phase::Waiting(request.keep);
                } else {
                    response.encode(request.keep, head_only, &mut self.output);
                    match response.is_stream() {
                        true if head_only => self.phase = Phase::Ending,
                        true => self.phase = Phase::Streaming,
                        false if request.keep == Keep::Close => self.phase = Phase::Ending,
                        false => {}
                    }
                }
                self.input.drain(..bytes);
                self.next_request();
                true
            }
            Err(problem) => {
                self.refuse(&problem);
                true
            }
        }
    }

    /// Answers a request that cannot be understood, and with it all that may follow.
    fn refuse(&mut self, problem: &Problem) {
        Response::problem(problem).encode(Keep::Close, false, &mut self.output);
        self.phase = Phase::Ending;
        self.input.clear();
        self.descriptors.clear();
        self.next_request();
    }

    fn next_request(&mut self) {
        self.input.shrink_to(INPUT_BYTES_KEPT);
        self.needed = 0;
        self.continued = false;
        self.answered = true;
        self.idle = false;
        self.since = Instant::now();
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut chunk = [0; CHUNK_BYTES];
        while !self.ended && self.input.len() < REQUEST_BYTES_MAX {
            let room = CHUNK_BYTES.min(REQUEST_BYTES_MAX - self.input.len());
            let chunk = chunk.get_mut(..room).unwrap_or_default();
            match self.descriptors.read(&self.stream, self.input.len(), chunk)? {
                Ok(None) => break,
                Ok(Some(0)) => self.ended = true,
                Ok(Some(bytes)) => self.input.extend_from_slice(chunk.get(..bytes).unwrap_or_default()),
                Err(TooMany) => {
                    let law = format!("a request comes with at most {DESCRIPTORS_MAX} descriptors");
                    self.refuse(&http::problem(400, law));
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes what there is to write; whether all of it is out.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match rustix::net::send(&self.stream, &self.output, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.output = Vec::new();
        Ok(true)
    }

    /// Throws away what a client says who should only listen, and hears whether it is still there.
    fn follow(&mut self) -> io::Result<Fate> {
        self.input = Vec::new();
        self.descriptors.clear();
        let mut chunk = [0; CHUNK_BYTES];
        if !self.ended
            && let Some([]) = read(&mut self.stream, &mut chunk)?
        {
            self.ended = true;
        }
        self.hears()
    }

    /// Whether the client is still there: one that says nothing more may still listen.
    fn hears(&self) -> io::Result<Fate> {
        let mut hears = [PollFd::new(&self.stream, PollFlags::empty())];
        rustix::event::poll(&mut hears, Some(&Timespec::default()))?;
        let [hears] = hears;
        Ok(if hears.revents().is_empty() { Fate::Keep } else { Fate::Close })
    }

    fn start_draining(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        self.input = Vec::new();
        self.descriptors.clear();
        self.phase = Phase::Draining(DRAINED_BYTES_MAX);
        Ok(())
    }

    fn drain(&mut self, mut left: usize) -> io::Result<Fate> {
        let mut chunk = [0; CHUNK_BYTES];
        while !self.ended && left > 0 {
            match read(&mut self.stream, &mut chunk)? {
                None => {
                    self.phase = Phase::Draining(left);
                    return Ok(Fate::Keep);
                }
                Some([]) => break,
                Some(bytes) => left = left.saturating_sub(bytes.len()),
            }
        }
        Ok(Fate::Close)
    }

    fn note_idleness(&mut self) {
        let idle = self.answered && self.input.is_empty() && self.output.is_empty() && !self.is_waiting();
        if idle != self.idle {
            self.idle = idle;
            self.since = Instant::now();
        }
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// Reads what there is: nothing yet, the end (empty), or bytes.
fn read<'a>(stream: &mut UnixStream, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    loop {
        match stream.read(buffer) {
            Ok(count) => return Ok(buffer.get(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

const CHUNK_BYTES: usize = 4096;
const INPUT_BYTES_KEPT: usize = 4096;
/// A few hundred events.
const STREAM_BYTES_MAX: usize = 64 * 1024;
const DRAINED_BYTES_MAX: usize = 256 * 1024;
/// So that one client cannot keep the event loop from everything else.
const REQUESTS_PER_TURN: usize = 16;
