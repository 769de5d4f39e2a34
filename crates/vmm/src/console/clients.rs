//! Those who look at the console through its socket.
//!
//! Invariant: at most [`CLIENTS_MAX`] of them, each with at most [`WAITING_BYTES_MAX`] of output waiting,
//! so that one who does not read loses output and holds nobody up. All of them hide behind one descriptor.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    time::Instant,
};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::input::{Input, Pulled};
use crate::outlet::Outlet;

/// The socket, and who came by it.
pub(super) struct Clients {
    listener: UnixListener,
    epoll: Epoll,
    places: [Option<Client>; CLIENTS_MAX],
    /// Whose turn to be read first it is, so that one who never stops typing leaves room for the others.
    next: usize,
    /// Somebody could not be let in, and is left outside until the next one knocks.
    shy: bool,
    dropped: u64,
}

struct Client {
    outlet: Outlet,
    /// It has gone, but what it has typed may still be there.
    gone: bool,
}

impl Clients {
    pub(super) fn new(listener: OwnedFd) -> io::Result<Self> {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, LISTENER);
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
        Ok(Self { listener, epoll, places: Default::default(), next: 0, shy: false, dropped: 0 })
    }

    /// Lets in who waits, and writes what can be written. What was typed is for [`Self::read`].
    pub(super) fn ready(&mut self) {
        let mut events = [EpollEvent::default(); CLIENTS_MAX + 1];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => return log::error!("waiting for the console's clients: {error}"),
        };
        let mut knocked = false;
        for event in events.iter().take(count) {
            let Ok(index) = usize::try_from(event.data()) else { continue };
            let Some(place) = self.places.get_mut(index) else {
                knocked = true;
                continue;
            };
            if let Some(client) = place {
                client.gone |= event.event_set().intersects(EventSet::HANG_UP | EventSet::ERROR);
                if client.outlet.flush().is_err() {
                    client.gone = true;
                }
            }
        }
        if knocked {
            self.accept();
        }
    }

    /// The guest has printed.
    pub(super) fn print(&mut self, bytes: &[u8]) {
        for client in self.places.iter_mut().flatten().filter(|client| !client.gone) {
            if client.outlet.put(bytes).is_err() {
                client.gone = true;
            }
        }
    }

    /// Hands on what was typed, until the guest has no more room.
    pub(super) fn read(&mut self, input: &mut Input) {
        for turn in 0..CLIENTS_MAX {
            let index = (self.next + turn) % CLIENTS_MAX;
            let Some(Some(client)) = self.places.get_mut(index) else { continue };
            match input.pull(client.outlet.reader()) {
                Pulled::Full => {
                    self.next = index + 1;
                    return;
                }
                // What is printed may still be looked at.
                Pulled::Empty | Pulled::End if !client.gone => {}
                Pulled::Empty | Pulled::End | Pulled::Failed(_) => self.leave(index),
            }
        }
    }

    /// Gives everybody a last chance to read.
    pub(super) fn finish(&mut self, deadline: Instant) {
        for client in self.places.iter_mut().flatten().filter(|client| !client.gone) {
            // Who is slow or gone has lost the end.
            let _ = client.outlet.finish(deadline);
        }
    }

    pub(super) fn dropped_bytes(&self) -> u64 {
        self.dropped + self.places.iter().flatten().map(|client| client.outlet.dropped_bytes()).sum::<u64>()
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = self.welcome(stream.into()) {
                        log::warn!("letting somebody look at the console: {error}");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Out of descriptors, say: trying again at once would be of no use.
                    log::warn!("accepting a connection to the console: {error}");
                    return self.listen(EventSet::IN | EventSet::EDGE_TRIGGERED);
                }
            }
        }
        if self.shy {
            self.listen(EventSet::IN);
        }
    }

    /// Waits for those who knock; edge-triggered, only for the next of them.
    fn listen(&mut self, events: EventSet) {
        self.shy = events.contains(EventSet::EDGE_TRIGGERED);
        let event = EpollEvent::new(events, LISTENER);
        if let Err(error) = self.epoll.ctl(ControlOperation::Modify, self.listener.as_raw_fd(), event) {
            log::error!("watching the console's socket: {error}");
        }
    }

    /// One too many finds the door closed again.
    fn welcome(&mut self, stream: OwnedFd) -> io::Result<()> {
        let free = self.places.iter().position(|place| place.as_ref().is_none_or(|client| client.gone));
        let Some(index) = free else { return Ok(()) };
        self.leave(index);
        let outlet = Outlet::new(stream, WAITING_BYTES_MAX)?;
        let interest = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(interest, index as u64);
        self.epoll.ctl(ControlOperation::Add, outlet.as_raw_fd(), event)?;
        if let Some(place) = self.places.get_mut(index) {
            *place = Some(Client { outlet, gone: false });
        }
        Ok(())
    }

    fn leave(&mut self, index: usize) {
        if let Some(client) = self.places.get_mut(index).and_then(Option::take) {
            self.dropped += client.outlet.dropped_bytes();
        }
    }
}

impl AsRawFd for Clients {
    /// Readable when [`Self::ready`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// How many can look at once.
const CLIENTS_MAX: usize = 8;
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// So that a crowd cannot keep the event loop from everything else.
const ACCEPTS_PER_TURN: usize = 16;
const LISTENER: u64 = CLIENTS_MAX as u64;
