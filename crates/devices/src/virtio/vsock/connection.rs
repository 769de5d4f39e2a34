//! One stream between a guest's socket and a host's.
//!
//! ```text
//!   host connects:  Calling ──RESPONSE──► Open
//!   guest connects:                       Open ──both ends of one side closed, or RST──► (gone)
//! ```
//!
//! Invariant: what the guest has sent and the host has not taken is at most [`BUF_ALLOC`] bytes: a guest
//! that sends more has broken its promise and is reset.

use std::{
    collections::VecDeque,
    io::{self, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use vm_memory::{ReadVolatile, VolatileMemoryError, WriteVolatile};
use vmm_sys_util::epoll::EventSet;

use super::packet::{
    HEADER_LEN, Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RESPONSE, OP_RST, OP_RW,
    OP_SHUTDOWN, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
};
use crate::virtio::Buffers;

pub(super) struct Connection {
    /// What the stream is known by on the host's side of the device.
    pub(super) token: u64,
    /// Whether it waits for its turn to say something to the guest.
    pub(super) queued: bool,
    stream: UnixStream,
    phase: Phase,
    credit: Credit,
    /// From the guest, not yet taken by the host.
    backlog: VecDeque<u8>,
    readable: bool,
    writable: bool,
    /// The host sends no more.
    host_ended: bool,
    /// The host takes no more: what comes for it is dropped.
    host_deaf: bool,
    /// What the guest has shut down, as flags of a shutdown packet.
    guest_shut: u32,
    owed: Owed,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Phase {
    Calling,
    Open,
}

/// What is to be said to the guest as soon as it has room.
#[derive(Default)]
struct Owed {
    request: bool,
    response: bool,
    credit_update: bool,
    /// Flags of shutdowns that the guest was told.
    shutdown_told: u32,
    /// The guest was asked for credit, and has not given any.
    credit_asked: bool,
}

/// Counts of bytes, modulo 2^32 (virtio 1.2 section 5.10.6.3).
#[derive(Default)]
struct Credit {
    from_guest: u32,
    to_host: u32,
    /// The last `to_host` that the guest was told.
    told: u32,
    to_guest: u32,
    guest_alloc: u32,
    guest_forwarded: u32,
}

/// What becomes of a stream after a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// It goes on.
    Keep,
    /// It has ended; the guest is told so by a reset.
    Reset,
    /// It has ended, and the guest knows.
    Forget,
}

/// What a stream has to say to the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Speech {
    /// A packet; its data lies in the buffers already.
    Packet {
        op: u16,
        flags: u32,
        len: u32,
    },
    Nothing,
    /// It has ended: reset it.
    Reset,
}

/// What the host has not taken of a stream that is gone for the guest.
pub(super) struct Rest {
    pub(super) token: u64,
    stream: UnixStream,
    backlog: VecDeque<u8>,
}

impl Connection {
    /// A stream from the host to the guest.
    pub(super) fn call(token: u64, stream: UnixStream) -> Self {
        let mut call = Self::new(token, stream, Phase::Calling);
        call.owed.request = true;
        call
    }

    /// A stream from the guest, which has sent `request`.
    pub(super) fn answer(token: u64, stream: UnixStream, request: &Header) -> Self {
        let mut answer = Self::new(token, stream, Phase::Open);
        answer.owed.response = true;
        answer.credit.hear(request);
        answer
    }

    fn new(token: u64, stream: UnixStream, phase: Phase) -> Self {
        Self {
            token,
            queued: false,
            stream,
            phase,
            credit: Credit::default(),
            backlog: VecDeque::new(),
            // Until it is known better.
            readable: true,
            writable: true,
            host_ended: false,
            host_deaf: false,
            guest_shut: 0,
            owed: Owed::default(),
        }
    }

    /// Tell the host's program that the stream is there.
    pub(super) fn greet(&mut self, port: u32) -> io::Result<()> {
        self.stream.write_all(format!("OK {port}\n").as_bytes())
    }

    /// The guest says something.
    pub(super) fn hear(&mut self, header: &Header, data: &Buffers) -> Verdict {
        self.credit.hear(header);
        if self.credit.room_at_guest() > 0 {
            self.owed.credit_asked = false;
        }
        match (self.phase, header.op) {
            (_, OP_RST) => Verdict::Forget,
            (Phase::Calling, OP_RESPONSE) => {
                self.phase = Phase::Open;
                if self.greet(header.dst_port).is_err() {
                    self.host_is_deaf();
                }
                Verdict::Keep
            }
            (Phase::Open, OP_RW) => self.take(data),
            (Phase::Open, OP_SHUTDOWN) => self.guest_shuts(header.flags),
            (Phase::Open, OP_CREDIT_UPDATE) => Verdict::Keep,
            (Phase::Open, OP_CREDIT_REQUEST) => {
                self.owed.credit_update = true;
                Verdict::Keep
            }
            _ => Verdict::Reset,
        }
    }

    /// The host's socket has become ready for something.
    pub(super) fn ready(&mut self, events: EventSet) {
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
            self.readable = true;
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = true;
            if self.phase == Phase::Open {
                self.host_is_deaf();
            }
        }
        if events.contains(EventSet::OUT) {
            self.writable = true;
            self.flush();
        }
    }

    /// Whether a host's program has gone before the guest has answered it.
    pub(super) fn is_forlorn(&self, events: EventSet) -> bool {
        self.phase == Phase::Calling && events.intersects(EventSet::HANG_UP | EventSet::ERROR)
    }

    /// Whether the guest was told of a stream from the host, or has asked for it.
    pub(super) fn is_known_to_guest(&self) -> bool {
        !self.owed.request
    }

    pub(super) fn has_something_to_say(&self) -> bool {
        let Owed { request, response, credit_update, .. } = self.owed;
        let open = self.phase == Phase::Open;
        let data = self.may_read() && (self.credit.room_at_guest() > 0 || !self.owed.credit_asked);
        request || response || open && (credit_update || data || self.shutdown_owed() != 0)
    }

    /// The next thing to say to the guest. Data is put into `room`, behind where the header goes.
    pub(super) fn speak(&mut self, room: &Buffers) -> Speech {
        if std::mem::take(&mut self.owed.request) {
            return Speech::packet(OP_REQUEST);
        }
        if std::mem::take(&mut self.owed.response) {
            return Speech::packet(OP_RESPONSE);
        }
        if self.phase == Phase::Calling {
            return Speech::Nothing;
        }
        let speech = self.speak_data(room);
        if speech != Speech::Nothing {
            return speech;
        }
        let flags = self.shutdown_owed();
        if flags != 0 {
            self.owed.shutdown_told |= flags;
            return Speech::Packet { op: OP_SHUTDOWN, flags: self.owed.shutdown_told, len: 0 };
        }
        if self.owed.credit_update { Speech::packet(OP_CREDIT_UPDATE) } else { Speech::Nothing }
    }

    /// What every packet to the guest says of credit.
    pub(super) fn fill_credit(&mut self, header: &mut Header) {
        header.buf_alloc = BUF_ALLOC;
        header.fwd_cnt = self.credit.to_host;
        self.credit.told = self.credit.to_host;
        self.owed.credit_update = false;
    }

    /// What the host has yet to take, if anything; the guest has nothing to do with it any more.
    pub(super) fn into_rest(self) -> Option<Rest> {
        let Self { token, stream, backlog, host_deaf, .. } = self;
        if host_deaf || backlog.is_empty() {
            return None;
        }
        // Fails if the host has closed: then the next write finds out.
        let _ = stream.shutdown(Shutdown::Read);
        Some(Rest { token, stream, backlog })
    }

    fn speak_data(&mut self, room: &Buffers) -> Speech {
        if !self.may_read() {
            return Speech::Nothing;
        }
        let most = self.credit.room_at_guest().min(DATA_MAX);
        if most == 0 {
            let asked = std::mem::replace(&mut self.owed.credit_asked, true);
            return if asked { Speech::Nothing } else { Speech::packet(OP_CREDIT_REQUEST) };
        }
        match read_into(&mut self.stream, room, most) {
            Ok(0) => self.host_ended = true,
            Ok(len) => {
                self.credit.to_guest = self.credit.to_guest.wrapping_add(len);
                return Speech::Packet { op: OP_RW, flags: 0, len };
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            // The host's program has died with something of ours unread.
            Err(_) => return Speech::Reset,
        }
        Speech::Nothing
    }

    fn may_read(&self) -> bool {
        let wanted = self.guest_shut & SHUTDOWN_RECEIVE == 0;
        self.phase == Phase::Open && self.readable && !self.host_ended && wanted
    }

    fn shutdown_owed(&self) -> u32 {
        let send = if self.host_ended { SHUTDOWN_SEND } else { 0 };
        let receive = if self.host_deaf { SHUTDOWN_RECEIVE } else { 0 };
        (send | receive) & !self.owed.shutdown_told
    }

    fn take(&mut self, data: &Buffers) -> Verdict {
        // `data` is part of guest memory, and its length was that of a header field.
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if self.guest_shut & SHUTDOWN_SEND != 0 || len > self.credit.room_at_host() {
            return Verdict::Reset;
        }
        self.credit.from_guest = self.credit.from_guest.wrapping_add(len);
        if self.host_deaf {
            self.host_took(len);
            return Verdict::Keep;
        }
        let mut done = 0;
        if self.backlog.is_empty() && self.writable {
            match write_from(&mut self.stream, data) {
                Ok(written) => {
                    done = written;
                    self.writable = done == len;
                    self.host_took(done);
                }
                Err(_) => {
                    self.host_took(len);
                    self.host_is_deaf();
                    return Verdict::Keep;
                }
            }
        }
        if done < len {
            let old = self.backlog.len();
            self.backlog.resize(old + (len - done) as usize, 0);
            if let Some(room) = self.backlog.make_contiguous().get_mut(old..) {
                data.read_at(u64::from(done), room);
            }
        }
        Verdict::Keep
    }

    fn guest_shuts(&mut self, flags: u32) -> Verdict {
        self.guest_shut |= flags & SHUTDOWN_BOTH;
        if self.guest_shut == SHUTDOWN_BOTH {
            return Verdict::Reset;
        }
        // Both fail only if the host has closed, of which its events tell.
        if self.guest_shut & SHUTDOWN_RECEIVE != 0 {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.flush();
        Verdict::Keep
    }

    fn flush(&mut self) {
        match write_backlog(&mut self.stream, &mut self.backlog) {
            Ok(done) => self.host_took(done),
            Err(_) => self.host_is_deaf(),
        }
        self.writable = self.backlog.is_empty();
        if self.backlog.is_empty() && self.guest_shut & SHUTDOWN_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    fn host_took(&mut self, count: u32) {
        self.credit.to_host = self.credit.to_host.wrapping_add(count);
        if self.credit.to_host.wrapping_sub(self.credit.told) >= BUF_ALLOC / 4 {
            self.owed.credit_update = true;
        }
    }

    fn host_is_deaf(&mut self) {
        self.host_deaf = true;
        let lost = u32::try_from(self.backlog.len()).unwrap_or(0);
        self.backlog = VecDeque::new();
        self.host_took(lost);
    }
}

impl Credit {
    fn hear(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
    }

    fn room_at_guest(&self) -> u32 {
        self.guest_alloc.saturating_sub(self.to_guest.wrapping_sub(self.guest_forwarded))
    }

    fn room_at_host(&self) -> u32 {
        BUF_ALLOC.saturating_sub(self.from_guest.wrapping_sub(self.to_host))
    }
}

impl Speech {
    fn packet(op: u16) -> Self {
        Self::Packet { op, flags: 0, len: 0 }
    }
}

impl Rest {
    /// The host's socket has become ready for something. False: nothing is left to do.
    pub(super) fn ready(&mut self, events: EventSet) -> bool {
        let written = write_backlog(&mut self.stream, &mut self.backlog);
        written.is_ok() && !events.contains(EventSet::ERROR) && !self.backlog.is_empty()
    }
}

/// From a socket into guest memory, behind where the header goes. Zero: the other side sends no more.
fn read_into(stream: &mut UnixStream, room: &Buffers, most: u32) -> io::Result<u32> {
    let mut done = 0;
    for slice in room.slices_from(HEADER_LEN as u64) {
        let wanted = slice.len().min((most - done) as usize);
        if wanted == 0 {
            break;
        }
        let Ok(mut part) = slice.subslice(0, wanted) else { break };
        match retry(|| stream.read_volatile(&mut part)) {
            Ok(read) => {
                // At most `most`.
                done += u32::try_from(read).unwrap_or(0);
                if read < wanted {
                    break;
                }
            }
            // The next call meets it again.
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// From guest memory into a socket, as far as it takes it.
fn write_from(stream: &mut UnixStream, data: &Buffers) -> io::Result<u32> {
    let mut done = 0;
    for slice in data.slices() {
        match retry(|| stream.write_volatile(&slice)) {
            Ok(written) => {
                done += u32::try_from(written).unwrap_or(0);
                if written < slice.len() {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn write_backlog(stream: &mut UnixStream, backlog: &mut VecDeque<u8>) -> io::Result<u32> {
    let mut done = 0;
    while !backlog.is_empty() {
        match stream.write(backlog.as_slices().0) {
            Ok(written) => {
                backlog.drain(..written);
                done += u32::try_from(written).unwrap_or(0);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(done),
            Err(error) => return Err(error),
        }
    }
    *backlog = VecDeque::new();
    Ok(done)
}

fn retry(mut act: impl FnMut() -> Result<usize, VolatileMemoryError>) -> io::Result<usize> {
    loop {
        match act() {
            Ok(count) => return Ok(count),
            Err(VolatileMemoryError::IOError(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(VolatileMemoryError::IOError(error)) => return Err(error),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// What a stream keeps for a host that reads slowly, bytes, and tells the guest that it can send.
pub(super) const BUF_ALLOC: u32 = 64 << 10;
/// The most data in one packet to the guest (virtio 1.2 names no bound; Linux takes 64 KiB).
const DATA_MAX: u32 = 64 << 10;
