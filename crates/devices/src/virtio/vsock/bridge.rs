//! The host's side: a listening socket, programs that have connected to it and say what they want, and
//! those that wait for a guest.
//!
//! ```text
//!   accepted ──"CONNECT port"──► News::Call
//!      └─────"LISTEN port"────► waiting ──the guest connects──► [`Bridge::listener_on`]
//! ```

use std::{
    collections::BTreeMap,
    io::{self, Read},
    mem,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::Rest;
use crate::virtio::Again;

pub(super) struct Bridge {
    listener: UnixListener,
    epoll: Epoll,
    again: Again,
    events: Vec<EpollEvent>,
    next_token: u64,
    /// Programs that have not said what they want, oldest first.
    greetings: BTreeMap<u64, Greeting>,
    /// Programs that wait for a guest, oldest first.
    waiting: BTreeMap<u64, Waiting>,
    /// Streams that are gone for the guest, but not for the host.
    rests: BTreeMap<u64, Rest>,
}

struct Greeting {
    stream: UnixStream,
    line: Vec<u8>,
}

struct Waiting {
    stream: UnixStream,
    port: u32,
}

/// What the device hears from the host.
pub(super) enum News {
    /// A program wants to reach the guest's `port`.
    Call { token: u64, stream: UnixStream, port: u32 },
    /// The socket of a stream is ready for something.
    Ready { token: u64, events: EventSet },
}

/// What a program wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wish {
    Connect(u32),
    Listen(u32),
}

impl Bridge {
    pub(super) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (epoll, again) = (Epoll::new()?, Again::new()?);
        let edges = |events: EventSet| events | EventSet::EDGE_TRIGGERED;
        epoll.ctl(
            ControlOperation::Add,
            listener.as_raw_fd(),
            EpollEvent::new(edges(EventSet::IN), TOKEN_LISTENER),
        )?;
        epoll.ctl(
            ControlOperation::Add,
            again.as_raw_fd(),
            EpollEvent::new(edges(EventSet::IN), TOKEN_AGAIN),
        )?;
        Ok(Self {
            listener,
            epoll,
            again,
            events: vec![EpollEvent::default(); EVENTS_MAX],
            next_token: TOKEN_FIRST,
            greetings: BTreeMap::new(),
            waiting: BTreeMap::new(),
            rests: BTreeMap::new(),
        })
    }

    /// Ready (edge-triggered) when [`Self::hear`] has something new.
    pub(super) fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Have the device woken again.
    pub(super) fn call_again(&self) {
        self.again.call();
    }

    /// What has happened on the host since the last call. True: there may be more.
    pub(super) fn hear(&mut self, news: &mut Vec<News>) -> bool {
        // Also without an event: it may have failed for want of descriptors.
        let mut more = self.accept(news);
        let mut events = mem::take(&mut self.events);
        match self.epoll.wait(0, &mut events) {
            Ok(count) => {
                for event in events.iter().take(count) {
                    self.take(event.data(), event.event_set(), news);
                }
                more |= count == events.len();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => more = true,
            Err(error) => note("wait for programs", &error),
        }
        self.events = events;
        more
    }

    /// The program that has waited longest for a guest to connect to `port`.
    pub(super) fn listener_on(&mut self, port: u32) -> Option<(u64, UnixStream)> {
        let token = *self.waiting.iter().find(|(_, waiting)| waiting.port == port)?.0;
        let waiting = self.waiting.remove(&token)?;
        Some((token, waiting.stream))
    }

    /// Let the host take the rest of a stream that has ended for the guest.
    pub(super) fn keep_rest(&mut self, rest: Rest) {
        if self.rests.len() >= RESTS_MAX {
            self.rests.pop_first();
        }
        self.rests.insert(rest.token, rest);
    }

    /// How many programs wait for a guest to connect.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn take(&mut self, token: u64, events: EventSet, news: &mut Vec<News>) {
        if token < TOKEN_FIRST {
            return;
        }
        if self.greetings.contains_key(&token) {
            self.greet(token, news);
            if self.greetings.contains_key(&token) {
                return;
            }
        }
        // What has just said what it wants may have gone with the same event.
        if self.waiting.contains_key(&token) {
            if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
                self.waiting.remove(&token);
            }
        } else if let Some(rest) = self.rests.get_mut(&token) {
            if !rest.ready(events) {
                self.rests.remove(&token);
            }
        } else {
            news.push(News::Ready { token, events });
        }
    }

    /// True: there may be more.
    fn accept(&mut self, news: &mut Vec<News>) -> bool {
        for _ in 0..ACCEPTS_PER_WAKE {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    note("accept a program", &error);
                    return false;
                }
            };
            let token = self.next_token;
            self.next_token += 1;
            let edges = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
            let event = EpollEvent::new(edges, token);
            let watched = stream
                .set_nonblocking(true)
                .and_then(|()| self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event));
            if let Err(error) = watched {
                note("watch a program", &error);
                continue;
            }
            if self.greetings.len() >= GREETINGS_MAX {
                // Whoever has been silent longest.
                self.greetings.pop_first();
            }
            self.greetings.insert(token, Greeting { stream, line: Vec::new() });
            self.greet(token, news);
        }
        true
    }

    /// Read the line in which a program says what it wants, as far as it has come.
    fn greet(&mut self, token: u64, news: &mut Vec<News>) {
        let Some(greeting) = self.greetings.get_mut(&token) else { return };
        let wish = match greeting.read_line() {
            Ok(None) => return,
            Ok(Some(wish)) => Some(wish),
            Err(_) => None,
        };
        let Some(Greeting { stream, .. }) = self.greetings.remove(&token) else { return };
        match wish {
            Some(Wish::Connect(port)) => news.push(News::Call { token, stream, port }),
            Some(Wish::Listen(port)) if self.waiting.len() < WAITING_MAX => {
                self.waiting.insert(token, Waiting { stream, port });
            }
            // Dropped, and so closed.
            Some(Wish::Listen(_)) | None => {}
        }
    }
}

fn note(what: &str, error: &io::Error) {
    log::warn!("the vsock bridge cannot {what}: {error}");
}

impl Greeting {
    /// None: the line is not whole. What follows the line stays in the socket, so it is read byte by byte.
    fn read_line(&mut self) -> io::Result<Option<Wish>> {
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" => {
                    return wish(&self.line).map(Some).ok_or(io::ErrorKind::InvalidData.into());
                }
                Ok(_) if self.line.len() >= LINE_MAX => return Err(io::ErrorKind::InvalidData.into()),
                Ok(_) => self.line.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

fn wish(line: &[u8]) -> Option<Wish> {
    let (word, port) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    // `+5` is a number to the parser, but not to the protocol.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port: u32 = port.parse().ok().filter(|port| digits && *port != PORT_ANY)?;
    match word {
        "CONNECT" => Some(Wish::Connect(port)),
        "LISTEN" => Some(Wish::Listen(port)),
        _ => None,
    }
}

const TOKEN_LISTENER: u64 = 0;
const TOKEN_AGAIN: u64 = 1;
const TOKEN_FIRST: u64 = 2;
/// A program that says nothing for long gives way to new ones.
const GREETINGS_MAX: usize = 64;
const WAITING_MAX: usize = 1023;
const RESTS_MAX: usize = 64;
const EVENTS_MAX: usize = 64;
const ACCEPTS_PER_WAKE: usize = 64;
/// The longest line, bytes without its end.
const LINE_MAX: usize = 64;
/// `VMADDR_PORT_ANY`.
const PORT_ANY: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::{Wish, wish};

    #[test]
    fn lines() {
        for (line, expected) in [
            ("CONNECT 22", Some(Wish::Connect(22))),
            ("LISTEN 4294967294", Some(Wish::Listen(4_294_967_294))),
            ("CONNECT 4294967295", None),
            ("CONNECT 4294967296", None),
            ("CONNECT +5", None),
            ("CONNECT  5", None),
            ("CONNECT 5\r", None),
            ("CONNECT", None),
            ("connect 5", None),
            ("", None),
        ] {
            assert_eq!(wish(line.as_bytes()), expected, "{line:?}");
        }
        assert_eq!(wish(b"CONNECT \xff"), None);
    }
}
