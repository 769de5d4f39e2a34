//! The control socket: HTTP/1.1 and JSON ([`ec2vmm_vmm_api::control`]) on a Unix stream socket.
//!
//! All of it hides behind one descriptor of its own. Whoever runs the event loop waits for that one
//! and calls [`ControlServer::ready`], which never blocks.
//!
//! Invariant: at most `CONNECTIONS_MAX` connections, each with at most one request and one answer in
//! memory. When all are taken, the one that has been idle longest makes room for the next; if none
//! is idle, the next waits until one is, or until one has been busy for `STALL`. So no client, nor
//! eight that say nothing, can keep others out. Those who follow events keep their places, of which there are
//! [`STREAMS_MAX`], and so does the one who waits for a snapshot, who is heard again when it is done. The same goes for descriptors that come with a request: it claims them, or they are closed.

mod connection;
mod descriptors;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
mod http;
mod routes;

use std::{
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::Duration,
};

use ec2vmm_vmm_api::control::{Problem, SnapshotTaken};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    timerfd::TimerFd,
};

use self::{
    connection::{Connection, Fate},
    http::Response,
};
pub use self::{
    http::problem,
    routes::{Detached, Handler},
};

/// The listening socket and its connections.
pub struct ControlServer {
    listener: UnixListener,
    connections: [Option<Connection>; CONNECTIONS_MAX],
    epoll: Epoll,
    /// Runs while somebody may be waiting for room.
    timer: TimerFd,
    waiting: bool,
    stall: Duration,
}

impl ControlServer {
    /// Serves a listening socket.
    ///
    /// # Errors
    /// The system has no descriptors left, or the listener is no socket.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let timer = TimerFd::new()?;
        let watch = |fd, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token));
        watch(listener.as_raw_fd(), LISTENER)?;
        watch(timer.as_raw_fd(), TIMER)?;
        let connections = std::array::from_fn(|_| None);
        Ok(Self { listener, connections, epoll, timer, waiting: false, stall: STALL })
    }

    /// Does all that can be done now: accepts, reads, answers, writes.
    pub fn ready(&mut self, handler: &mut dyn Handler) {
        let mut events = [EpollEvent::default(); CONNECTIONS_MAX + 2];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => return log::error!("waiting for control connections: {error}"),
        };
        let mut knocked = self.waiting;
        for event in events.iter().take(count) {
            match event.data() {
                LISTENER => knocked = true,
                TIMER => self.timer_expired(),
                token => self.serve(usize::try_from(token).unwrap_or(usize::MAX), handler),
            }
        }
        // After all others, so that nobody who has just spoken is taken for idle.
        if knocked {
            self.accept(handler);
        }
    }

    /// Something has happened that those who follow events should hear: a line.
    pub fn publish(&mut self, line: &[u8]) {
        for index in 0..CONNECTIONS_MAX {
            let Some(Some(connection)) = self.connections.get_mut(index) else { continue };
            if connection.is_streaming() {
                let fate = connection.go_on(line);
                self.settle(index, fate);
            }
        }
    }

    /// The snapshot that was begun last is done, or there will be none: tells who has asked, if he is still there.
    pub fn tell_snapshot(&mut self, taken: Result<SnapshotTaken, Problem>) {
        let response = taken.and_then(|taken| Response::json(&taken));
        let response = response.unwrap_or_else(|problem| Response::problem(&problem));
        for index in 0..CONNECTIONS_MAX {
            let Some(Some(connection)) = self.connections.get_mut(index) else { continue };
            if connection.is_waiting() {
                let fate = connection.answer_at_last(&response);
                self.settle(index, fate);
            }
        }
    }

    fn accept(&mut self, handler: &mut dyn Handler) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(index) = self.room() else { return self.wait_for_room() };
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(index, stream, handler),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.listen(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Out of descriptors, say: trying again at once would be of no use. Said once, until
                    // all who wait were let in.
                    if !self.waiting {
                        log::warn!("accepting a control connection: {error}");
                    }
                    return self.wait_for_room();
                }
            }
        }
        self.listen();
    }

    /// A place that is free or can be made free for a new connection.
    fn room(&self) -> Option<usize> {
        if let Some(free) = self.connections.iter().position(Option::is_none) {
            return Some(free);
        }
        let taken = || {
            let all = self.connections.iter().enumerate();
            let taken = all.filter_map(|(index, connection)| Some((index, connection.as_ref()?)));
            taken.filter(|(_, connection)| !connection.is_streaming() && !connection.is_waiting())
        };
        let idle = taken().filter(|(_, connection)| connection.is_idle());
        let stalled = taken().filter(|(_, connection)| connection.age() >= self.stall);
        let oldest = idle.max_by_key(|(_, connection)| connection.age());
        oldest.or_else(|| stalled.max_by_key(|(_, connection)| connection.age())).map(|(index, _)| index)
    }

    /// Gives a new connection its place, and hears at once what it has to say.
    fn welcome(&mut self, index: usize, stream: UnixStream, handler: &mut dyn Handler) {
        let fd = stream.as_raw_fd();
        let event = EpollEvent::new(EventSet::IN, index as u64);
        let added =
            stream.set_nonblocking(true).and_then(|()| self.epoll.ctl(ControlOperation::Add, fd, event));
        match (added, self.connections.get_mut(index)) {
            (Ok(()), Some(place)) => *place = Some(Connection::new(stream)),
            (Ok(()), None) => {}
            (Err(error), _) => log::warn!("serving a control connection: {error}"),
        }
        self.serve(index, handler);
    }

    fn serve(&mut self, index: usize, handler: &mut dyn Handler) {
        let streams = self.connections.iter().flatten().filter(|one| one.is_streaming()).count();
        let Some(Some(connection)) = self.connections.get_mut(index) else { return };
        let fate = connection.turn(streams < STREAMS_MAX, handler);
        self.settle(index, fate);
    }

    /// Waits for what a connection waits for, or lets go of it.
    fn settle(&mut self, index: usize, fate: Fate) {
        let Some(place) = self.connections.get_mut(index) else { return };
        let Some(connection) = place else { return };
        let event = EpollEvent::new(connection.interest(), index as u64);
        let fd = connection.as_raw_fd();
        if fate == Fate::Close {
            *place = None; // and so is its place in the epoll set
        } else if let Err(error) = self.epoll.ctl(ControlOperation::Modify, fd, event) {
            log::warn!("serving a control connection: {error}");
            *place = None;
        }
    }

    /// Leaves whoever knocks next in the listener's backlog for a while.
    fn wait_for_room(&mut self) {
        if !self.waiting {
            self.waiting = true;
            self.watch_listener(EventSet::empty());
            self.start_timer();
        }
    }

    fn listen(&mut self) {
        if self.waiting {
            self.waiting = false;
            self.watch_listener(EventSet::IN);
        }
    }

    fn watch_listener(&self, events: EventSet) {
        let event = EpollEvent::new(events, LISTENER);
        if let Err(error) = self.epoll.ctl(ControlOperation::Modify, self.listener.as_raw_fd(), event) {
            log::error!("watching the control socket: {error}");
        }
    }

    fn timer_expired(&mut self) {
        if let Err(error) = self.timer.wait() {
            log::error!("reading the control socket's timer: {error}");
        }
        if self.waiting {
            self.start_timer();
        }
    }

    fn start_timer(&mut self) {
        if let Err(error) = self.timer.reset(self.stall, None) {
            log::error!("starting the control socket's timer: {error}");
        }
    }
}

impl AsRawFd for ControlServer {
    /// Readable, level-triggered, when [`Self::ready`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// How many can talk at once.
const CONNECTIONS_MAX: usize = 8;
/// How many of them can follow events.
const STREAMS_MAX: usize = CONNECTIONS_MAX / 2;
/// How long one exchange may take when others wait.
const STALL: Duration = Duration::from_secs(5);
/// So that a crowd cannot keep the event loop from everything else.
const ACCEPTS_PER_TURN: usize = 16;

const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod tests;
