#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::Shutdown,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{
    Vsock,
    connection::BUF_ALLOC,
    packet::{
        HEADER_LEN, Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RESPONSE, OP_RST, OP_RW,
        OP_SHUTDOWN, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
    },
};
use crate::virtio::{
    Buffers, CommandError, DeviceAnswer, DeviceCommand, VirtioDevice, Wake,
    testing::{Buffer, Guest},
};

const CID: u32 = 5;
const RX: usize = 0;
const TX: usize = 1;
const ROOM: u32 = 4096;
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x40_0000;

/// A guest whose driver keeps the receive queue full, and programs of the host.
struct World {
    guest: Guest,
    device: Vsock,
    address: SocketAddr,
    /// Packets that the guest has received.
    inbox: VecDeque<(Header, Vec<u8>)>,
    /// Buffers of the receive queue, by head.
    rooms: Vec<Option<Buffer>>,
    next_room: u64,
}

fn world() -> World {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("vsock-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let device = Vsock::new(CID, UnixListener::bind_addr(&address).unwrap()).unwrap();
    let guest = Guest::new(&[128, 128, 128]);
    let mut world = World { guest, device, address, inbox: VecDeque::new(), rooms: Vec::new(), next_room: 0 };
    world.boot();
    world
}

impl World {
    /// The driver comes up.
    fn boot(&mut self) {
        self.guest = Guest::new(&[128, 128, 128]);
        self.inbox.clear();
        self.rooms = vec![None; 128];
        self.next_room = 0;
        self.device.activate(0, self.guest.queues()).unwrap();
        self.give_rooms(100);
        self.run();
    }

    /// Whether the device is to be woken.
    fn is_called(&self) -> bool {
        let [source] = *self.device.sources() else { panic!("it has one") };
        let epoll = Epoll::new().unwrap();
        epoll.ctl(ControlOperation::Add, source, EpollEvent::new(EventSet::IN, 0)).unwrap();
        epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
    }

    fn give_rooms(&mut self, count: usize) {
        for _ in 0..count {
            let address = RX_BUFFERS + self.next_room % 128 * u64::from(ROOM);
            self.next_room += 1;
            let room = Buffer::writable(address, ROOM);
            let head = self.guest.ring(RX).add(&[room]);
            self.rooms[usize::from(head)] = Some(room);
        }
    }

    /// Let the device do what it can, and the driver take what came.
    fn run(&mut self) {
        loop {
            self.device.wake(Wake::Source(0)).unwrap();
            let used = self.guest.ring(RX).used();
            for (head, len) in &used {
                let room = self.rooms[usize::from(*head)].take().unwrap();
                let mut buffers = Buffers::new(Arc::clone(&self.guest.memory));
                buffers.push(GuestAddress(room.address), *len).unwrap();
                let header = Header::read(&buffers).unwrap();
                let data = self.guest.bytes(room)[HEADER_LEN..*len as usize].to_vec();
                assert_eq!(header.len as usize, data.len());
                assert_eq!((header.src_cid, header.dst_cid), (2, u64::from(CID)));
                self.inbox.push_back((header, data));
            }
            self.give_rooms(used.len());
            self.guest.ring(TX).used();
            if used.is_empty() {
                return;
            }
        }
    }

    /// The guest sends a packet.
    fn send(&mut self, header: Header, data: &[u8]) {
        self.guest.memory.write_slice(&header.bytes(), GuestAddress(TX_BUFFERS)).unwrap();
        self.guest.memory.write_slice(data, GuestAddress(TX_BUFFERS + 64)).unwrap();
        let chain = [Buffer::readable(TX_BUFFERS, 44), Buffer::readable(TX_BUFFERS + 64, data.len() as u32)];
        self.guest.ring(TX).add(&chain[..if data.is_empty() { 1 } else { 2 }]);
        self.run();
    }

    /// The next packet that the guest has received: what it is, and its data.
    fn next(&mut self) -> Option<(u16, Vec<u8>)> {
        self.inbox.pop_front().map(|(header, data)| (header.op, data))
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect_addr(&self.address).unwrap()
    }

    fn say(&mut self, line: &str) -> UnixStream {
        let mut stream = self.connect();
        stream.write_all(line.as_bytes()).unwrap();
        self.run();
        stream
    }

    /// A stream from the host to the guest's port 80, and the host's port.
    fn call(&mut self) -> (UnixStream, u32) {
        let mut stream = self.say("CONNECT 80\n");
        let (request, _) = self.inbox.pop_front().unwrap();
        assert_eq!((request.op, request.dst_port), (OP_REQUEST, 80));
        self.send(guest_header(request.src_port, 80, OP_RESPONSE), b"");
        assert_eq!(line(&mut stream), format!("OK {}", request.src_port));
        (stream, request.src_port)
    }

    fn count(&self, name: &str) -> u64 {
        self.device.metrics().iter().find(|(n, _)| *n == name).unwrap().1
    }
}

/// A packet of the guest with plenty of credit.
fn guest_header(host: u32, guest: u32, op: u16) -> Header {
    Header {
        src_cid: u64::from(CID),
        dst_cid: 2,
        src_port: guest,
        dst_port: host,
        kind: 1,
        op,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

fn data(host: u32, guest: u32, len: usize) -> Header {
    Header { len: len as u32, ..guest_header(host, guest, OP_RW) }
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).unwrap();
        if byte == *b"\n" {
            return String::from_utf8(line).unwrap();
        }
        line.extend(byte);
    }
}

fn is_closed(mut stream: &UnixStream) -> bool {
    stream.set_nonblocking(false).unwrap();
    matches!(stream.read(&mut [0]), Ok(0)) || stream.write(&[0]).is_err()
}

#[test]
fn a_program_reaches_the_guest() {
    let mut w = world();
    let (mut stream, port) = w.call();
    stream.write_all(b"hello guest").unwrap();
    w.run();
    assert_eq!(w.next(), Some((OP_RW, b"hello guest".to_vec())));
    w.send(data(port, 80, 10), b"hello host");
    let mut read = [0; 10];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"hello host");
    assert_eq!((w.count("streams"), w.count("from_guest_bytes"), w.count("to_guest_bytes")), (1, 10, 11));
}

#[test]
fn what_follows_the_line_is_the_stream() {
    let mut w = world();
    let _stream = w.say("CONNECT 80\nat once");
    let (request, _) = w.inbox.pop_front().unwrap();
    assert_eq!(w.next(), None, "not before the guest has answered");
    w.send(guest_header(request.src_port, 80, OP_RESPONSE), b"");
    assert_eq!(w.next(), Some((OP_RW, b"at once".to_vec())));
}

#[test]
fn a_guest_reaches_a_program_that_listens() {
    let mut w = world();
    let mut first = w.say("LISTEN 9\n");
    let _second = w.say("LISTEN 9\n");
    assert_eq!(w.count("waiting"), 2);
    w.send(guest_header(9, 1000, OP_REQUEST), b"");
    assert_eq!(w.next(), Some((OP_RESPONSE, vec![])));
    assert_eq!(line(&mut first), "OK 1000");
    w.send(data(9, 1000, 3), b"abc");
    let mut read = [0; 3];
    first.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"abc");
    w.send(guest_header(9, 1001, OP_REQUEST), b"");
    assert_eq!(w.next(), Some((OP_RESPONSE, vec![])));
    w.send(guest_header(9, 1002, OP_REQUEST), b"");
    assert_eq!(w.next(), Some((OP_RST, vec![])), "nobody listens any more");
}

#[test]
fn a_program_that_has_gone_listens_no_more() {
    let mut w = world();
    drop(w.say("LISTEN 9\n"));
    w.run();
    assert_eq!(w.count("waiting"), 0);
    // All in one go, before the device has looked.
    let mut quick = w.connect();
    quick.write_all(b"LISTEN 9\n").unwrap();
    drop(quick);
    w.run();
    w.run();
    assert_eq!(w.count("waiting"), 0);
    w.send(guest_header(9, 1000, OP_REQUEST), b"");
    assert_eq!(w.next(), Some((OP_RST, vec![])));
}

#[test]
fn a_guest_that_refuses_closes_the_program_s_stream() {
    let mut w = world();
    let stream = w.say("CONNECT 81\n");
    let (request, _) = w.inbox.pop_front().unwrap();
    w.send(guest_header(request.src_port, 81, OP_RST), b"");
    assert!(is_closed(&stream));
    assert_eq!(w.count("streams"), 0);
    assert_eq!(w.next(), None, "a reset is not answered");
}

#[test]
fn a_program_that_gives_up_before_the_guest_answers() {
    let mut w = world();
    drop(w.say("CONNECT 80\n"));
    w.run();
    let (request, _) = w.inbox.pop_front().unwrap();
    assert_eq!(w.next(), Some((OP_RST, vec![])));
    w.send(guest_header(request.src_port, 80, OP_RESPONSE), b"");
    assert_eq!(w.next(), Some((OP_RST, vec![])));
    assert_eq!(w.count("streams"), 0);
}

#[test]
fn programs_that_come_and_go_leave_nothing_with_a_guest_that_takes_nothing() {
    let mut world = world();
    world.guest = Guest::new(&[128, 128, 128]);
    world.device.activate(0, world.guest.queues()).unwrap();
    for _ in 0..3 {
        let stream = world.say("CONNECT 80\n");
        assert_eq!(world.count("streams"), 1);
        drop(stream);
        world.run();
        assert_eq!(world.count("streams"), 0);
    }
    assert_eq!(world.device.state.as_ref().unwrap().resets, []);
}

#[test]
fn lines_that_mean_nothing_close_the_stream() {
    let mut w = world();
    for bad in ["HELLO\n", "CONNECT x\n", "\n", &"x".repeat(65), &format!("CONNECT {}1\n", "0".repeat(70))] {
        let stream = w.say(bad);
        assert!(is_closed(&stream), "{bad:?}");
    }
    let mut slow = w.say("CONN");
    slow.write_all(b"ECT 80\n").unwrap();
    w.run();
    assert_eq!(w.next().unwrap().0, OP_REQUEST, "a line may come in parts");
}

#[test]
fn silent_programs_give_way() {
    let mut w = world();
    let silent: Vec<UnixStream> = (0..65).map(|_| w.say("")).collect();
    assert!(is_closed(&silent[0]));
    for stream in &silent[1..] {
        stream.set_nonblocking(true).unwrap();
        let error = (&*stream).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn a_host_that_reads_slowly_costs_64_kib() {
    let mut w = world();
    let (mut stream, port) = w.call();
    let chunk = vec![7; 16 << 10];
    let mut sent = 0u32;
    // What a guest does that keeps its promise: as much as it was told there is room for.
    let mut told = 0u32;
    while sent.wrapping_sub(told) + 16384 <= BUF_ALLOC {
        w.send(data(port, 80, chunk.len()), &chunk);
        sent += 16384;
        while let Some((header, _)) = w.inbox.pop_front() {
            assert_eq!((header.op, header.buf_alloc), (OP_CREDIT_UPDATE, BUF_ALLOC));
            told = header.fwd_cnt;
        }
        assert!(sent < 64 << 20, "a socket's buffer has an end");
    }
    // The host reads all of it, and the guest hears that there is room again.
    let mut read = vec![0; sent as usize];
    let reader = std::thread::spawn(move || {
        stream.read_exact(&mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == 7));
        stream
    });
    while told != sent {
        w.run();
        if let Some((header, _)) = w.inbox.pop_front() {
            told = header.fwd_cnt;
        } else if reader.is_finished() {
            w.run();
            w.send(guest_header(port, 80, OP_CREDIT_REQUEST), b"");
        }
    }
    let _first = reader.join().unwrap();

    // A guest that breaks the promise is reset.
    let (_stream, port) = w.call();
    let mut sent = 0;
    while w.count("streams") == 2 {
        w.send(data(port, 80, chunk.len()), &chunk);
        sent += chunk.len();
        assert!(sent < 64 << 20);
    }
    while let Some((op, _)) = w.next() {
        assert!(op == OP_CREDIT_UPDATE || op == OP_RST && w.inbox.is_empty());
    }
}

#[test]
fn packets_in_many_pieces_keep_nobody_waiting() {
    let mut world = world();
    let (mut stream, host) = world.call();
    stream.set_nonblocking(true).unwrap();
    // A packet of 120 bytes, each of them a piece of its own, again and again.
    world.guest.memory.write_slice(&data(host, 80, 120).bytes(), GuestAddress(TX_BUFFERS)).unwrap();
    let mut pieces = vec![Buffer::readable(TX_BUFFERS, 44)];
    pieces.extend((0..120).map(|at| Buffer::readable(TX_BUFFERS + 64 + at, 1)));
    let head = world.guest.ring(TX).add(&pieces);
    (1..100).for_each(|_| world.guest.ring(TX).make_available(head));
    let (mut packets, mut wakes) = (0, 0);
    while packets < 100 {
        world.device.wake(Wake::Source(0)).unwrap();
        let taken = world.guest.ring(TX).used().len();
        // What it says of credit is taken too.
        assert!((1..=1024 / 122 + 1).contains(&taken), "{taken} packets in a wake");
        packets += taken;
        wakes += 1;
        assert!(packets == 100 || world.is_called(), "the rest comes by itself");
        // So that it may send on.
        let mut bytes = [0; 1 << 16];
        while matches!(stream.read(&mut bytes), Ok(1..)) {}
    }
    assert!(wakes > 10, "{wakes} wakes");
    assert_eq!(world.count("from_guest_bytes"), 12_000);
}

#[test]
fn room_in_many_pieces_keeps_nobody_waiting() {
    let mut world = world();
    let mut pieces = vec![Buffer::writable(RX_BUFFERS, 44)];
    pieces.extend((0..100).map(|at| Buffer::writable(RX_BUFFERS + 64 + at, 1)));
    // A driver that has given no room yet.
    world.device.reset();
    world.guest = Guest::new(&[128, 128, 128]);
    world.device.activate(0, world.guest.queues()).unwrap();
    let mut stream = world.connect();
    stream.write_all(b"CONNECT 80\n").unwrap();
    let head = world.guest.ring(RX).add(&pieces);
    world.device.wake(Wake::Source(0)).unwrap();
    assert_eq!(world.guest.ring(RX).used().len(), 1, "the request");
    let mut buffers = Buffers::new(Arc::clone(&world.guest.memory));
    buffers.push(GuestAddress(RX_BUFFERS), 44).unwrap();
    let request = Header::read(&buffers).unwrap();
    let answer = guest_header(request.src_port, 80, OP_RESPONSE);
    world.guest.memory.write_slice(&answer.bytes(), GuestAddress(TX_BUFFERS)).unwrap();
    world.guest.ring(TX).add(&[Buffer::readable(TX_BUFFERS, 44)]);
    world.device.wake(Wake::Source(0)).unwrap();
    stream.write_all(&[7; 5000]).unwrap();
    (0..60).for_each(|_| world.guest.ring(RX).make_available(head));
    let (mut packets, mut wakes) = (0, 0);
    while packets < 50 {
        world.device.wake(Wake::Source(0)).unwrap();
        let said = world.guest.ring(RX).used().len();
        assert!((1..=1024 / 102 + 1).contains(&said), "{said} packets in a wake");
        packets += said;
        wakes += 1;
        assert!(packets == 50 || world.is_called(), "the rest comes by itself");
    }
    assert!(wakes >= 5, "{wakes} wakes");
    assert_eq!(world.count("to_guest_bytes"), 5000);
}

#[test]
fn a_guest_that_reads_slowly_gets_no_more_than_it_takes() {
    let mut w = world();
    let mut stream = w.say("CONNECT 80\n");
    let (request, _) = w.inbox.pop_front().unwrap();
    let port = request.src_port;
    let credit = |op, fwd_cnt| Header { buf_alloc: 10, fwd_cnt, ..guest_header(port, 80, op) };
    stream.write_all(&[1; 100]).unwrap();
    w.send(credit(OP_RESPONSE, 0), b"");
    assert_eq!(w.next(), Some((OP_RW, vec![1; 10])));
    assert_eq!(w.next(), Some((OP_CREDIT_REQUEST, vec![])));
    assert_eq!(w.next(), None);
    w.send(credit(OP_CREDIT_UPDATE, 7), b"");
    assert_eq!(w.next(), Some((OP_RW, vec![1; 7])));
    assert_eq!(w.next(), Some((OP_CREDIT_REQUEST, vec![])));
    // A guest that lies about what it has forwarded gets nothing.
    w.send(credit(OP_CREDIT_UPDATE, 1000), b"");
    assert_eq!(w.next(), None);
}

#[test]
fn without_room_in_the_receive_queue_all_wait() {
    let mut w = world();
    w.guest = Guest::new(&[128, 128, 128]);
    w.device.activate(0, w.guest.queues()).unwrap();
    w.rooms = vec![None; 128];
    let streams: Vec<UnixStream> = (0..3).map(|_| w.say("CONNECT 80\n")).collect();
    assert_eq!(w.next(), None);
    w.give_rooms(10);
    w.device.wake(Wake::Queue(0)).unwrap();
    w.run();
    assert_eq!(w.inbox.len(), 3);
    drop(streams);
}

#[test]
fn the_host_closes_its_half() {
    let mut w = world();
    let (mut stream, port) = w.call();
    stream.write_all(b"last words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    w.run();
    assert_eq!(w.next(), Some((OP_RW, b"last words".to_vec())));
    let (header, _) = w.inbox.pop_front().unwrap();
    assert_eq!((header.op, header.flags), (OP_SHUTDOWN, SHUTDOWN_SEND));
    // The other half still works.
    w.send(data(port, 80, 6), b"answer");
    let mut read = [0; 6];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"answer");
    drop(stream);
    w.run();
    let (header, _) = w.inbox.pop_front().unwrap();
    assert_eq!((header.op, header.flags), (OP_SHUTDOWN, SHUTDOWN_BOTH));
    w.send(guest_header(port, 80, OP_RST), b"");
    assert_eq!(w.count("streams"), 0);
}

#[test]
fn the_guest_closes_its_half() {
    let mut w = world();
    let (mut stream, port) = w.call();
    w.send(data(port, 80, 4), b"last");
    w.send(Header { flags: SHUTDOWN_SEND, ..guest_header(port, 80, OP_SHUTDOWN) }, b"");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last");
    stream.write_all(b"still here").unwrap();
    w.run();
    assert_eq!(w.next(), Some((OP_RW, b"still here".to_vec())));
    w.send(Header { flags: SHUTDOWN_RECEIVE, ..guest_header(port, 80, OP_SHUTDOWN) }, b"");
    assert_eq!(w.next(), Some((OP_RST, vec![])), "both halves are closed");
    assert!(is_closed(&stream));
}

#[test]
fn what_the_guest_sent_before_it_closed_arrives_however_slowly_the_host_reads() {
    let mut w = world();
    let (mut stream, port) = w.call();
    let (mut sent, mut told) = (0u32, 0);
    while sent - told + 4096 <= BUF_ALLOC {
        let bytes: Vec<u8> = (sent..sent + 4096).map(|n| (n % 251) as u8).collect();
        w.send(data(port, 80, 4096), &bytes);
        sent += 4096;
        while let Some((header, _)) = w.inbox.pop_front() {
            told = header.fwd_cnt;
        }
    }
    w.send(Header { flags: SHUTDOWN_BOTH, ..guest_header(port, 80, OP_SHUTDOWN) }, b"");
    assert_eq!(w.next(), Some((OP_RST, vec![])));
    assert_eq!(w.count("streams"), 0);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    while !reader.is_finished() {
        w.run();
    }
    let all = reader.join().unwrap();
    assert_eq!(all.len(), sent as usize);
    assert!(all.iter().zip(0u32..).all(|(byte, n)| *byte == (n % 251) as u8));
}

#[test]
fn a_host_that_dies_loses_only_its_own() {
    let mut w = world();
    let (mut stream, port) = w.call();
    stream.write_all(b"will").unwrap();
    drop(stream);
    // The guest sends what nobody will read; what the host had sent still reaches it.
    w.send(data(port, 80, 100), &[0; 100]);
    w.run();
    let packets: Vec<(u16, u32)> = w.inbox.drain(..).map(|(header, _)| (header.op, header.flags)).collect();
    assert!(packets.contains(&(OP_RW, 0)), "{packets:?}");
    assert_eq!(packets.last(), Some(&(OP_SHUTDOWN, SHUTDOWN_BOTH)));
}

#[test]
fn packets_of_no_stream_are_reset() {
    let mut w = world();
    for op in [OP_RESPONSE, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST, 77, 0] {
        w.send(guest_header(1, 2, op), b"");
        let (header, _) = w.inbox.pop_front().unwrap();
        assert_eq!((header.op, header.src_port, header.dst_port), (OP_RST, 1, 2), "{op}");
    }
    w.send(Header { kind: 2, ..guest_header(1, 2, OP_REQUEST) }, b"");
    assert_eq!(w.inbox.pop_front().unwrap().0.kind, 2, "sequenced packets are not spoken");
    w.send(guest_header(1, 2, OP_RST), b"");
    w.send(Header { src_cid: 99, ..guest_header(1, 2, OP_REQUEST) }, b"");
    w.send(Header { len: 5, ..guest_header(1, 2, OP_RW) }, b"");
    assert_eq!(w.next(), None);
    assert_eq!(w.count("refused"), 2);
}

#[test]
fn a_stream_in_use_cannot_be_opened_again() {
    let mut w = world();
    let (stream, port) = w.call();
    w.send(guest_header(port, 80, OP_REQUEST), b"");
    assert_eq!(w.next(), Some((OP_RST, vec![])));
    assert!(is_closed(&stream));
}

#[test]
fn a_reboot_ends_streams_and_keeps_those_who_listen() {
    let mut w = world();
    let (stream, _) = w.call();
    let mut listener = w.say("LISTEN 9\n");
    w.device.reset();
    assert!(is_closed(&stream));
    // A program that comes while no driver is there waits.
    let mut early = w.connect();
    early.write_all(b"CONNECT 80\n").unwrap();
    w.device.wake(Wake::Source(0)).unwrap();
    w.boot();
    let (request, _) = w.inbox.pop_front().unwrap();
    w.send(guest_header(request.src_port, 80, OP_RESPONSE), b"");
    assert_eq!(line(&mut early), format!("OK {}", request.src_port));
    w.send(guest_header(9, 1000, OP_REQUEST), b"");
    assert_eq!(line(&mut listener), "OK 1000");
}

#[test]
fn a_guest_hears_that_its_streams_are_gone() {
    const EVENTS: usize = 2;
    let mut w = world();
    let (stream, port) = w.call();
    let mut listener = w.say("LISTEN 9\n");
    let room = w.guest.room(4);
    w.guest.memory.write_slice(&[0xff; 4], GuestAddress(room.address)).unwrap();
    let reset = |w: &mut World| w.device.command(&DeviceCommand::ResetTransport).unwrap();
    // Without a buffer for it the guest hears later.
    assert_eq!(reset(&mut w), DeviceAnswer::Done);
    assert!(is_closed(&stream));
    assert_eq!((w.count("streams"), w.count("transport_resets")), (0, 1));
    let small = w.guest.room(3);
    let heads = [w.guest.ring(EVENTS).add(&[small]), w.guest.ring(EVENTS).add(&[room])];
    w.device.wake(Wake::Queue(2)).unwrap();
    assert_eq!(w.guest.ring(EVENTS).used(), [(heads[0], 0), (heads[1], 4)]);
    assert_eq!((w.guest.bytes(room), w.guest.interrupts.of_queue(EVENTS)), (vec![0; 4], 1));
    // With one it hears at once, and once.
    let head = w.guest.ring(EVENTS).add(&[room]);
    w.guest.ring(EVENTS).add(&[room]);
    w.device.wake(Wake::Queue(2)).unwrap();
    assert_eq!(w.guest.ring(EVENTS).used(), []);
    reset(&mut w);
    assert_eq!(w.guest.ring(EVENTS).used(), [(head, 4)]);
    // What it still says of the old stream is of nobody; new streams come as ever.
    w.inbox.clear();
    w.send(data(port, 80, 3), b"old");
    assert_eq!(w.next(), Some((OP_RST, vec![])));
    w.call();
    w.send(guest_header(9, 1000, OP_REQUEST), b"");
    assert_eq!(line(&mut listener), "OK 1000", "those that wait for the guest wait on");
    // Without a driver there is nobody to tell.
    w.device.reset();
    assert_eq!(reset(&mut w), DeviceAnswer::Done);
    assert!(matches!(w.device.command(&DeviceCommand::ReadBalloon), Err(CommandError::Unsupported)));
}

#[test]
fn many_streams_and_no_more() {
    let mut w = world();
    assert_eq!(w.device.streams_max, 1023);
    // So that the test needs no more descriptors than a process has by default.
    w.device.streams_max = 200;
    let mut streams: Vec<(UnixStream, u32)> = (0..200).map(|_| w.call()).collect();
    assert_eq!(w.count("streams"), 200);
    w.send(guest_header(9, 1000, OP_REQUEST), b"");
    assert_eq!(w.next(), Some((OP_RST, vec![])));
    let one_more = w.say("CONNECT 80\n");
    assert!(is_closed(&one_more));
    assert_eq!(w.count("turned_away"), 2);
    for (number, (stream, _)) in streams.iter_mut().enumerate() {
        stream.write_all(&(number as u32).to_le_bytes()).unwrap();
    }
    w.run();
    w.run();
    let mut seen: Vec<Vec<u8>> = w.inbox.drain(..).map(|(_, data)| data).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 200, "each has had its turn");
    drop(streams);
    w.run();
}

#[test]
fn what_it_tells_of_itself() {
    let w = world();
    let identity = w.device.identity();
    assert_eq!((identity.device_type, identity.queue_sizes.len()), (19, 3));
    assert_eq!(identity.config.bytes(), 5u64.to_le_bytes());
    let address = SocketAddr::from_abstract_name(format!("vsock-cid-{}", std::process::id())).unwrap();
    assert!(Vsock::new(2, UnixListener::bind_addr(&address).unwrap()).is_err());
}

fn any_header() -> impl Strategy<Value = Header> {
    let ports =
        (prop_oneof![Just(9u32), Just(1 << 30), any::<u32>()], prop_oneof![Just(80u32), any::<u32>()]);
    let len = prop_oneof![3 => 0u32..200, 1 => any::<u32>()];
    let rest = (0u16..9, 0u16..3, any::<u32>(), any::<u32>(), any::<u32>());
    (ports, len, rest).prop_map(|((host, guest), len, (op, kind, flags, buf_alloc, fwd_cnt))| Header {
        len,
        kind,
        flags,
        buf_alloc,
        fwd_cnt,
        ..guest_header(host, guest, op)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest sends, the device goes on, and keeps to its bounds.
    #[test]
    fn any_packets(headers in prop::collection::vec(any_header(), 0..60)) {
        let mut w = world();
        let _listener = w.say("LISTEN 9\n");
        let mut stream = w.say("CONNECT 80\n");
        stream.write_all(&[1; 1000]).unwrap();
        for header in headers {
            w.send(header, &vec![2; header.len.min(200) as usize]);
        }
        prop_assert!(w.count("streams") <= 2);
        w.device.reset();
        w.boot();
        let _ = w.call();
    }

    /// Rings full of noise never bring the device down.
    #[test]
    fn noise_in_the_rings(noise in prop::collection::vec(any::<u8>(), 0x4000..0x4001)) {
        let mut w = world();
        let _stream = w.say("CONNECT 80\n");
        w.guest.memory.write_slice(&noise, GuestAddress(0x1000)).unwrap();
        for _ in 0..3 {
            if w.device.wake(Wake::Queue(1)).is_err() {
                break;
            }
        }
        w.device.reset();
    }
}
