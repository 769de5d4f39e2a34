//! virtio-vsock (virtio 1.2 section 5.10), stream sockets only, in user space: a guest's sockets meet
//! programs of the host at a Unix socket. A program that connects to it writes `CONNECT PORT` or
//! `LISTEN PORT` and a newline, and gets `OK PORT` and a newline when the stream is there.
//!
//! Limits: 1,023 streams; 1,023 programs that wait for a guest; 64 that have not yet said what they
//! want, within 64 bytes; 64 KiB kept a stream for a host that reads slowly. Programs that connect
//! before the guest's driver is up wait in the listening socket; at a reset all streams end, and those
//! that listen go on to. The process must ignore SIGPIPE, as Rust's runtime does.
//!
//! Invariant: nothing is read from a host's socket but straight into a buffer of the guest's, so a guest
//! that reads slowly costs the host nothing.

mod bridge;
mod connection;
mod events;
mod packet;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::{fd::RawFd, unix::net::UnixListener},
    sync::Arc,
};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use self::{
    bridge::{Bridge, News},
    connection::{Connection, Speech, Verdict},
    events::Events,
    packet::{CID_HOST, HEADER_LEN, Header, KIND_STREAM, OP_REQUEST, OP_RST, Ports},
};
use super::{
    Buffers, CommandError, ConfigSpace, DeviceAnswer, DeviceCommand, GuestFault, Identity, Position,
    VirtQueue, VirtioDevice, Wake,
};

/// A socket device.
pub struct Vsock {
    cid: u64,
    bridge: Bridge,
    config: Arc<ConfigSpace>,
    /// The next port on the host's side to try for a stream from the host.
    next_port: u32,
    streams_max: usize,
    counters: Counters,
    state: Option<State>,
}

/// All that a reset clears.
struct State {
    receive: VirtQueue,
    transmit: VirtQueue,
    events: Events,
    streams_max: usize,
    connections: HashMap<Ports, Connection>,
    /// By the tokens of the bridge.
    tokens: HashMap<u64, Ports>,
    /// Streams that have something to say to the guest, in turn.
    speakers: VecDeque<Ports>,
    /// Resets to be said to the guest, before all else.
    resets: VecDeque<Header>,
    incoming: Buffers,
    outgoing: Buffers,
    stray: Buffers,
}

#[derive(Default)]
struct Counters {
    opened: u64,
    to_guest_bytes: u64,
    from_guest_bytes: u64,
    /// Streams that found nobody, or no room.
    turned_away: u64,
    /// Packets and chains that made no sense.
    refused: u64,
    /// How often the guest was told that its streams are gone.
    transport_resets: u64,
}

impl Vsock {
    /// A device of which the guest's context id is `cid`, bridged to `listener`.
    ///
    /// # Errors
    /// `cid` is below 3, which has other meanings, or the host is out of descriptors.
    pub fn new(cid: u32, listener: UnixListener) -> io::Result<Self> {
        if cid < CID_MIN {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a guest's context id is 3 or more"));
        }
        Ok(Self {
            cid: u64::from(cid),
            bridge: Bridge::new(listener)?,
            config: Arc::new(ConfigSpace::read_only(u64::from(cid).to_le_bytes().to_vec())),
            next_port: PORT_FIRST,
            streams_max: STREAMS_MAX,
            counters: Counters::default(),
            state: None,
        })
    }

    /// The guest's streams have ended without a word of either side: the machine goes on from a snapshot,
    /// say. The guest is told so as soon as it has a buffer for it (virtio 1.2 section 5.10.6.7); those that
    /// wait for a guest wait on.
    ///
    /// # Errors
    /// The rings are broken: the driver must reset the device.
    pub fn reset_transport(&mut self) -> Result<(), GuestFault> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let all: Vec<Ports> = state.connections.keys().copied().collect();
        all.into_iter().for_each(|ports| state.remove(ports, &mut self.bridge));
        state.resets.clear();
        self.counters.transport_resets += 1;
        state.events.transport_reset();
        state.events.tell(&mut self.counters.refused)
    }

    /// Hear what the host's side has to say. True: there may be more.
    fn hear_host(&mut self) -> bool {
        let Some(state) = &mut self.state else { return false };
        let mut news = Vec::new();
        let more = self.bridge.hear(&mut news);
        for item in news {
            match item {
                News::Call { token, stream, port } => {
                    if state.connections.len() >= self.streams_max {
                        self.counters.turned_away += 1;
                        continue;
                    }
                    let ports = state.free_ports(&mut self.next_port, port);
                    state.insert(ports, Connection::call(token, stream));
                    self.counters.opened += 1;
                }
                News::Ready { token, events } => {
                    let Some(&ports) = state.tokens.get(&token) else { continue };
                    let Some(connection) = state.connections.get_mut(&ports) else { continue };
                    if connection.is_forlorn(events) {
                        // A guest that has not heard of it needs no word of its end. It may never take
                        // one, while programs come and go.
                        let heard_of = connection.is_known_to_guest();
                        state.remove(ports, &mut self.bridge);
                        if heard_of {
                            state.resets.push_back(header(self.cid, ports, OP_RST));
                        }
                    } else {
                        connection.ready(events);
                        state.let_speak(ports);
                    }
                }
            }
        }
        more
    }

    /// Take the guest's packets. True: there may be more.
    fn hear_guest(&mut self) -> Result<bool, GuestFault> {
        let Some(state) = self.state.as_mut().filter(|state| state.transmit.is_ready()) else {
            return Ok(false);
        };
        state.transmit.disable_kicks()?;
        let (mut more, mut left) = (true, PIECES_PER_WAKE);
        while left > 0 {
            left -= 1;
            if state.resets.len() >= RESETS_MAX {
                // When the guest has taken them: `run` comes here whatever woke it.
                more = false;
                break;
            }
            let Some(chain) = state.transmit.pop()? else {
                more = state.transmit.enable_kicks()?;
                if !more {
                    break;
                }
                continue;
            };
            let head = chain.head_index();
            let empty = Buffers::new(Arc::clone(state.transmit.memory()));
            let mut data = std::mem::replace(&mut state.incoming, empty);
            data.clear();
            state.stray.clear();
            let (_, outcome) = Buffers::gather(chain, &mut data, &mut state.stray);
            left = left.saturating_sub(data.segments() + state.stray.segments());
            let header = Header::read(&data).filter(|_| outcome.is_ok());
            data.advance(HEADER_LEN as u64);
            match header {
                Some(header) if header.src_cid == self.cid && u64::from(header.len) <= data.len() => {
                    data.truncate(u64::from(header.len));
                    self.counters.from_guest_bytes += data.len();
                    state.hear(&header, &data, &mut self.bridge, &mut self.counters);
                }
                _ => self.counters.refused += 1,
            }
            state.incoming = data;
            state.transmit.complete(head, 0)?;
        }
        state.transmit.notify()?;
        Ok(more)
    }

    /// Say to the guest what is to be said, as far as it has room. True: there may be more.
    fn speak(&mut self) -> Result<bool, GuestFault> {
        let Some(state) = self.state.as_mut().filter(|state| state.receive.is_ready()) else {
            return Ok(false);
        };
        state.receive.disable_kicks()?;
        let (mut more, mut left) = (true, PIECES_PER_WAKE);
        while left > 0 {
            left -= 1;
            if state.resets.is_empty() && state.speakers.is_empty() {
                more = false;
                break;
            }
            let Some(chain) = state.receive.pop()? else {
                more = state.receive.enable_kicks()?;
                if !more {
                    break;
                }
                continue;
            };
            let head = chain.head_index();
            state.outgoing.clear();
            state.stray.clear();
            let (_, outcome) = Buffers::gather(chain, &mut state.stray, &mut state.outgoing);
            left = left.saturating_sub(state.outgoing.segments() + state.stray.segments());
            let sane = outcome.is_ok() && state.stray.is_empty();
            if !sane || state.outgoing.len() <= HEADER_LEN as u64 {
                self.counters.refused += 1;
                state.receive.complete(head, 0)?;
                continue;
            }
            let Some(header) = state.next_packet(self.cid, &mut self.bridge) else {
                state.receive.undo_pop();
                more = false;
                break;
            };
            state.outgoing.write_at(0, &header.bytes());
            self.counters.to_guest_bytes += u64::from(header.len);
            state.receive.complete(head, HEADER_LEN_U32 + header.len)?;
        }
        state.receive.notify()?;
        Ok(more)
    }
}

impl VirtioDevice for Vsock {
    fn identity(&self) -> Identity {
        Identity {
            device_type: VIRTIO_ID_VSOCK,
            pci_class: PCI_CLASS_COMMUNICATION,
            features: FEATURE_STREAM,
            queue_sizes: vec![QUEUE_SIZE; 3],
            config: Arc::clone(&self.config),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.bridge.descriptor()]
    }

    fn activate(&mut self, _features: u64, queues: Vec<VirtQueue>) -> Result<(), GuestFault> {
        self.reset();
        let mut queues = queues.into_iter();
        let (Some(receive), Some(transmit), Some(event)) = (queues.next(), queues.next(), queues.next())
        else {
            return Err(GuestFault::Request("a socket device without its three queues"));
        };
        let buffers = || Buffers::new(Arc::clone(receive.memory()));
        self.state = Some(State {
            connections: HashMap::new(),
            tokens: HashMap::new(),
            speakers: VecDeque::new(),
            resets: VecDeque::new(),
            incoming: buffers(),
            outgoing: buffers(),
            stray: buffers(),
            streams_max: self.streams_max,
            receive,
            transmit,
            events: Events::new(event),
        });
        Ok(())
    }

    fn wake(&mut self, _wake: Wake) -> Result<(), GuestFault> {
        let mut more = self.hear_host();
        more |= self.hear_guest()?;
        let held_back = self.state.as_ref().is_some_and(|state| state.resets.len() >= RESETS_MAX);
        more |= self.speak()?;
        if let Some(state) = &mut self.state {
            state.events.tell(&mut self.counters.refused)?;
        }
        // Room was made for what the guest says.
        more |= held_back && self.state.as_ref().is_some_and(|state| state.resets.len() < RESETS_MAX);
        if more {
            self.bridge.call_again();
        }
        Ok(())
    }

    fn reset(&mut self) {
        let Self { cid: _, bridge: _, config: _, next_port: _, streams_max: _, counters: _, state } = self;
        *state = None;
    }

    fn positions(&self) -> Vec<Position> {
        let Some(State { receive, transmit, events, .. }) = &self.state else { return Vec::new() };
        vec![receive.position(0), transmit.position(0), events.position()]
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        let Counters { opened, to_guest_bytes, from_guest_bytes, turned_away, refused, transport_resets } =
            self.counters;
        let streams = self.state.as_ref().map_or(0, |state| state.connections.len());
        vec![
            ("streams", streams as u64),
            ("waiting", self.bridge.waiting() as u64),
            ("opened", opened),
            ("to_guest_bytes", to_guest_bytes),
            ("from_guest_bytes", from_guest_bytes),
            ("turned_away", turned_away),
            ("refused", refused),
            ("transport_resets", transport_resets),
        ]
    }

    fn command(&mut self, command: &DeviceCommand) -> Result<DeviceAnswer, CommandError> {
        match command {
            DeviceCommand::ResetTransport => self.reset_transport()?,
            _ => return Err(CommandError::Unsupported),
        }
        Ok(DeviceAnswer::Done)
    }
}

impl State {
    /// A packet of the guest.
    fn hear(&mut self, header: &Header, data: &Buffers, bridge: &mut Bridge, counters: &mut Counters) {
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let ours = header.dst_cid == CID_HOST && header.kind == KIND_STREAM;
        let verdict = match self.connections.get_mut(&ports).filter(|_| ours) {
            Some(connection) => connection.hear(header, data),
            None if ours && header.op == OP_REQUEST => self.answer(header, ports, bridge, counters),
            // A reset is never answered by one.
            None if header.op == OP_RST => return,
            None => Verdict::Reset,
        };
        match verdict {
            Verdict::Keep => self.let_speak(ports),
            Verdict::Forget => self.remove(ports, bridge),
            Verdict::Reset => {
                if ours {
                    self.remove(ports, bridge);
                }
                self.resets.push_back(header.reset());
            }
        }
    }

    /// The guest wants a stream to a port of the host.
    fn answer(
        &mut self,
        request: &Header,
        ports: Ports,
        bridge: &mut Bridge,
        counters: &mut Counters,
    ) -> Verdict {
        while self.connections.len() < self.streams_max
            && let Some((token, stream)) = bridge.listener_on(ports.host)
        {
            let mut connection = Connection::answer(token, stream, request);
            // A program that has gone meanwhile is passed over.
            if connection.greet(ports.guest).is_ok() {
                self.insert(ports, connection);
                counters.opened += 1;
                return Verdict::Keep;
            }
        }
        counters.turned_away += 1;
        Verdict::Reset
    }

    /// What is to be said next, with its data in `outgoing`.
    fn next_packet(&mut self, cid: u64, bridge: &mut Bridge) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(ports) = self.speakers.pop_front() {
            let Some(connection) = self.connections.get_mut(&ports) else { continue };
            connection.queued = false;
            match connection.speak(&self.outgoing) {
                Speech::Packet { op, flags, len } => {
                    let mut packet = Header { flags, len, ..header(cid, ports, op) };
                    connection.fill_credit(&mut packet);
                    self.let_speak(ports);
                    return Some(packet);
                }
                Speech::Nothing => {}
                Speech::Reset => {
                    self.remove(ports, bridge);
                    return Some(header(cid, ports, OP_RST));
                }
            }
        }
        None
    }

    /// Queue a stream up to speak, if it has anything to say.
    fn let_speak(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.get_mut(&ports)
            && !connection.queued
            && connection.has_something_to_say()
        {
            connection.queued = true;
            self.speakers.push_back(ports);
        }
    }

    fn insert(&mut self, ports: Ports, connection: Connection) {
        self.tokens.insert(connection.token, ports);
        self.connections.insert(ports, connection);
        self.let_speak(ports);
    }

    fn remove(&mut self, ports: Ports, bridge: &mut Bridge) {
        let Some(connection) = self.connections.remove(&ports) else { return };
        self.tokens.remove(&connection.token);
        if connection.queued {
            self.speakers.retain(|speaker| *speaker != ports);
        }
        if let Some(rest) = connection.into_rest() {
            bridge.keep_rest(rest);
        }
    }

    /// A pair of ports that no stream has. There are more ports than streams, so there is one.
    fn free_ports(&self, next: &mut u32, guest: u32) -> Ports {
        loop {
            let ports = Ports { host: *next, guest };
            *next = next.checked_add(1).filter(|port| *port < PORT_END).unwrap_or(PORT_FIRST);
            if !self.connections.contains_key(&ports) {
                return ports;
            }
        }
    }
}

/// A packet from the host without data.
fn header(cid: u64, ports: Ports, op: u16) -> Header {
    Header {
        src_cid: CID_HOST,
        dst_cid: cid,
        src_port: ports.host,
        dst_port: ports.guest,
        kind: KIND_STREAM,
        op,
        ..Header::default()
    }
}

const CID_MIN: u32 = 3;
/// `VIRTIO_VSOCK_F_STREAM`.
const FEATURE_STREAM: u64 = 1;
const QUEUE_SIZE: u16 = 128;
/// Simple communication controller, other.
const PCI_CLASS_COMMUNICATION: u32 = 0x07_80_00;
const STREAMS_MAX: usize = 1023;
/// Where the host's ports for streams of its own begin: programs listen below.
const PORT_FIRST: u32 = 1 << 30;
const PORT_END: u32 = 1 << 31;
const RESETS_MAX: usize = 256;
/// Packets, and pieces of memory that they are in, each way until others get their turn: each piece can cost a
/// system call. The last packet may go beyond by its own.
const PIECES_PER_WAKE: usize = 1024;
const HEADER_LEN_U32: u32 = 44;
