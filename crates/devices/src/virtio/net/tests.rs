#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex},
};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{FRAMES_PER_WAKE, Limiters, Net, Offloads, Options, Port};
use crate::{
    rate_limit::{RateLimit, RateLimiter, TokenBucket},
    virtio::{
        Again, Buffers, CommandError, DeviceAnswer, DeviceCommand, DeviceState, Position, VirtioDevice, Wake,
        testing::{Buffer, FakeTime, Guest},
    },
};

const RX: usize = 0;
const TX: usize = 1;
const MRG: u64 = 1 << 15;
const GUEST_CSUM: u64 = 1 << 1;
const CTRL_OFFLOADS: u64 = 1 << 2;
const STATUS: u64 = 1 << 16;
const CTRL: u64 = 1 << 17;
const ANNOUNCE: u64 = 1 << 21;
const MQ: u64 = 1 << 22;
const GUEST_TSO4: u64 = 1 << 7;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };

/// A cable whose other end the test holds.
#[derive(Clone)]
struct Cable(Arc<Mutex<Ends>>, Arc<Again>);

#[derive(Default)]
struct Ends {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: Vec<Vec<u8>>,
    offloads: Offloads,
    enabled: bool,
    /// What sending answers, if not that it is done.
    failure: Option<io::ErrorKind>,
    /// How many buffers each frame was offered.
    offered: Vec<usize>,
}

impl Cable {
    fn new() -> Self {
        Self(Arc::default(), Arc::new(Again::new().unwrap()))
    }

    fn ends(&self) -> std::sync::MutexGuard<'_, Ends> {
        self.0.lock().unwrap()
    }
}

impl Port for Cable {
    fn descriptor(&self) -> RawFd {
        self.1.as_raw_fd()
    }
    fn offloads(&self) -> Offloads {
        ALL
    }
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.ends().offloads = offloads;
        Ok(())
    }
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.ends().enabled = enabled;
        Ok(())
    }
    fn receive(&mut self, buffers: &Buffers, spill: &mut [u8]) -> io::Result<usize> {
        let mut ends = self.ends();
        let frame = ends.to_guest.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        if frame.is_empty() {
            return Err(io::Error::other("the cable is cut"));
        }
        ends.offered.push(buffers.segments());
        let done = buffers.write_at(0, &frame);
        spill[..frame.len() - done].copy_from_slice(&frame[done..]);
        Ok(frame.len())
    }
    fn send(&mut self, frame: &Buffers) -> io::Result<()> {
        let mut ends = self.ends();
        if let Some(kind) = ends.failure {
            return Err(kind.into());
        }
        let mut data = vec![0; frame.len() as usize];
        assert_eq!(frame.read_at(0, &mut data), data.len());
        ends.from_guest.push(data);
        Ok(())
    }
}

struct Fixture {
    guest: Guest,
    device: Net<Cable>,
    /// The first pair's.
    cable: Cable,
    cables: Vec<Cable>,
    time: FakeTime,
}

fn fixture(features: u64, size: u16) -> Fixture {
    with_pairs(1, features, size)
}

fn with_pairs(pairs: usize, features: u64, size: u16) -> Fixture {
    limited(pairs, features, size, RateLimit::default(), RateLimit::default())
}

fn limited(pairs: usize, features: u64, size: u16, receive: RateLimit, transmit: RateLimit) -> Fixture {
    let guest = Guest::new(&vec![size; 2 * pairs + 1]);
    let cables: Vec<Cable> = (0..pairs).map(|_| Cable::new()).collect();
    let time = FakeTime::new();
    let limiters = limiters(&time, receive, transmit);
    let mut device = Net::new(cables.clone(), &Options { mac: MAC, mtu: None }, limiters).unwrap();
    device.activate(features, guest.queues()).unwrap();
    Fixture { guest, device, cable: cables[0].clone(), cables, time }
}

fn limiters(time: &FakeTime, receive: RateLimit, transmit: RateLimit) -> Limiters {
    Limiters {
        receive: RateLimiter::new(receive, time.timer()),
        transmit: RateLimiter::new(transmit, time.timer()),
    }
}

/// A frame of `len` bytes after the header.
fn frame(len: usize) -> Vec<u8> {
    (0..12).map(|_| 0).chain((0..len).map(|n| (n % 251) as u8)).collect()
}

impl Fixture {
    fn arrives(&self, frame: Vec<u8>) {
        self.cable.ends().to_guest.push_back(frame);
    }

    fn wake(&mut self, wake: Wake) {
        self.device.wake(wake).unwrap();
    }

    fn count(&self, name: &str) -> u64 {
        self.device.metrics().iter().find(|(n, _)| *n == name).unwrap().1
    }

    /// What lies in buffers, as far as they were used.
    fn frame_in(&self, buffers: &[(Buffer, u32)]) -> Vec<u8> {
        buffers.iter().flat_map(|(buffer, len)| self.guest.bytes(*buffer)[..*len as usize].to_vec()).collect()
    }
}

#[test]
fn frames_come_in() {
    let mut f = fixture(MRG, 16);
    let rooms: Vec<Buffer> = (0..3).map(|_| f.guest.room(1526)).collect();
    let heads: Vec<u16> = rooms.iter().map(|room| f.guest.ring(RX).add(&[*room])).collect();
    f.arrives(frame(60));
    f.arrives(frame(1514));
    f.wake(Wake::Source(0));
    assert_eq!(f.guest.ring(RX).used(), [(heads[0], 72), (heads[1], 1526)]);
    for (room, len) in [(rooms[0], 60), (rooms[1], 1514)] {
        let mut expected = frame(len);
        expected[10] = 1;
        assert_eq!(f.frame_in(&[(room, len as u32 + 12)]), expected);
    }
    assert_eq!(f.guest.interrupts.of_queue(RX), 1);
    assert_eq!((f.count("rx_frames"), f.count("rx_bytes")), (2, 1574));
}

#[test]
fn a_large_frame_is_spread_over_buffers() {
    let mut f = fixture(MRG | GUEST_CSUM | GUEST_TSO4, 64);
    let rooms: Vec<Buffer> = (0..50).map(|_| f.guest.room(1526)).collect();
    let heads: Vec<u16> = rooms.iter().map(|room| f.guest.ring(RX).add(&[*room])).collect();
    f.arrives(frame(4000));
    f.arrives(frame(65_000));
    f.wake(Wake::Source(0));
    let used = f.guest.ring(RX).used();
    assert_eq!(used[..3], [(heads[0], 1526), (heads[1], 1526), (heads[2], 4012 - 2 * 1526)]);
    assert_eq!(used.len(), 3 + 65_012usize.div_ceil(1526));
    let mut expected = frame(65_000);
    expected[10] = (used.len() - 3) as u8;
    let pieces: Vec<(Buffer, u32)> =
        rooms.iter().zip(&used).skip(3).map(|(room, (_, len))| (*room, *len)).collect();
    assert_eq!(f.frame_in(&pieces), expected);
}

#[test]
fn buffers_are_ahead_as_many_as_frames_need() {
    let mut f = fixture(MRG | GUEST_CSUM | GUEST_TSO4, 256);
    let rooms: Vec<Buffer> = (0..200).map(|_| f.guest.room(1526)).collect();
    for room in &rooms {
        f.guest.ring(RX).add(&[*room]);
    }
    for len in [100, 65_000, 65_000, 1000, 1000] {
        f.arrives(frame(len));
    }
    f.wake(Wake::Source(0));
    // A frame that came unexpectedly large left none of its buffers behind.
    assert_eq!(f.cable.ends().offered, [2, 2, 43, 43, 42]);
    (0..60).for_each(|_| f.arrives(frame(1000)));
    f.wake(Wake::Source(0));
    assert_eq!(f.cable.ends().offered.last(), Some(&2));
    assert_eq!(f.count("rx_frames"), 65);
    assert_eq!(f.count("rx_bytes"), 100 + 2 * 65_000 + 62 * 1000);
}

#[test]
fn without_room_a_frame_waits_for_the_driver() {
    let mut f = fixture(MRG, 16);
    f.arrives(frame(3000));
    f.wake(Wake::Source(0));
    assert_eq!(f.cable.ends().to_guest.len(), 1, "it stays with the port");
    let first = f.guest.room(1526);
    f.guest.ring(RX).add(&[first]);
    f.wake(Wake::Queue(0));
    assert_eq!(f.guest.ring(RX).used(), [], "too little for it");
    let second = f.guest.room(1526);
    f.guest.ring(RX).add(&[second]);
    f.wake(Wake::Queue(0));
    let used = f.guest.ring(RX).used();
    assert_eq!(used.iter().map(|(_, len)| *len).collect::<Vec<_>>(), [1526, 3012 - 1526]);
    let mut expected = frame(3000);
    expected[10] = 2;
    assert_eq!(f.frame_in(&[(first, 1526), (second, 3012 - 1526)]), expected);
    assert_eq!(f.count("rx_dropped"), 0);
}

#[test]
fn a_frame_that_the_queue_can_never_hold_is_dropped() {
    let mut f = fixture(MRG, 2);
    for _ in 0..2 {
        let room = f.guest.room(100);
        f.guest.ring(RX).add(&[room]);
    }
    f.arrives(frame(1000));
    f.arrives(frame(60));
    f.wake(Wake::Source(0));
    assert_eq!(f.count("rx_dropped"), 1);
    assert_eq!(f.guest.ring(RX).used().len(), 1, "the next one fits");
}

#[test]
fn without_mergeable_buffers_a_frame_has_one() {
    let mut f = fixture(GUEST_CSUM, 16);
    let rooms: Vec<Buffer> = (0..2).map(|_| f.guest.room(200)).collect();
    let heads: Vec<u16> = rooms.iter().map(|room| f.guest.ring(RX).add(&[*room])).collect();
    f.arrives(frame(189));
    f.arrives(frame(188));
    f.arrives(frame(60));
    f.wake(Wake::Source(0));
    assert_eq!(f.count("rx_dropped"), 1, "one byte too long");
    assert_eq!(f.guest.ring(RX).used(), [(heads[0], 200), (heads[1], 72)]);
    assert_eq!(f.guest.bytes(rooms[0])[10..12], [1, 0]);
}

#[test]
fn frames_go_out() {
    let mut f = fixture(MRG, 16);
    let data = frame(1000);
    let (a, b, c) =
        (f.guest.buffer(&data[..12]), f.guest.buffer(&data[12..500]), f.guest.buffer(&data[500..]));
    let head = f.guest.ring(TX).add(&[a, b, c]);
    let whole = f.guest.buffer(&data);
    let second = f.guest.ring(TX).add(&[whole]);
    f.wake(Wake::Queue(1));
    assert_eq!(f.guest.ring(TX).used(), [(head, 0), (second, 0)]);
    assert_eq!(f.cable.ends().from_guest, [data.clone(), data]);
    assert_eq!((f.count("tx_frames"), f.count("tx_bytes")), (2, 2000));
}

#[test]
fn what_is_no_frame_is_not_sent() {
    let mut f = fixture(MRG, 16);
    let short = f.guest.buffer(&frame(13));
    let (long, room) = (Buffer::readable(0x10_0000, 65_566), f.guest.room(100));
    let outside = Buffer::readable(1 << 40, 100);
    for chain in [vec![short], vec![long], vec![room], vec![short, outside], vec![room, short]] {
        f.guest.ring(TX).add(&chain);
    }
    f.wake(Wake::Queue(1));
    assert_eq!(f.guest.ring(TX).used().len(), 5);
    assert_eq!(f.count("refused"), 5);
    assert!(f.cable.ends().from_guest.is_empty());
    // The other way: buffers that cannot be written.
    let good = f.guest.room(200);
    for chain in [vec![short], vec![short, room], vec![Buffer::writable(1 << 40, 9)], vec![good]] {
        f.guest.ring(RX).add(&chain);
    }
    f.arrives(frame(60));
    f.wake(Wake::Source(0));
    assert_eq!(f.guest.ring(RX).used().iter().map(|(_, len)| *len).collect::<Vec<_>>(), [0, 0, 0, 72]);
}

#[test]
fn a_port_that_is_busy_gets_the_frame_later() {
    let mut f = fixture(MRG, 16);
    let data = f.guest.buffer(&frame(100));
    f.guest.ring(TX).add(&[data]);
    f.cable.ends().failure = Some(io::ErrorKind::WouldBlock);
    f.wake(Wake::Queue(1));
    assert_eq!(f.guest.ring(TX).used(), []);
    f.cable.ends().failure = None;
    f.wake(Wake::Source(0));
    assert_eq!(f.guest.ring(TX).used().len(), 1);
    assert_eq!(f.cable.ends().from_guest.len(), 1);
}

#[test]
fn a_broken_cable_costs_frames_not_the_machine() {
    let mut f = fixture(MRG, 16);
    let data = f.guest.buffer(&frame(100));
    f.guest.ring(TX).add(&[data]);
    f.cable.ends().failure = Some(io::ErrorKind::Other);
    f.wake(Wake::Queue(1));
    assert_eq!(f.guest.ring(TX).used().len(), 1);
    assert_eq!(f.count("tx_dropped"), 1);
    let room = f.guest.room(200);
    f.guest.ring(RX).add(&[room]);
    f.arrives(Vec::new());
    f.arrives(frame(60));
    f.wake(Wake::Source(0));
    assert_eq!(f.guest.ring(RX).used(), []);
    f.wake(Wake::Source(0));
    assert_eq!(f.guest.ring(RX).used().len(), 1, "once it is mended");
    assert_eq!(f.count("errors"), 2);
}

#[test]
fn others_get_their_turn() {
    let mut f = fixture(MRG, 1024);
    for _ in 0..FRAMES_PER_WAKE + 10 {
        let data = f.guest.buffer(&frame(60));
        f.guest.ring(TX).add(&[data]);
    }
    f.wake(Wake::Queue(1));
    assert_eq!(f.guest.ring(TX).used().len(), FRAMES_PER_WAKE);
    assert!(f.device.again.is_called());
    f.wake(Wake::Source(1));
    assert_eq!(f.guest.ring(TX).used().len(), 10);
    assert!(!f.device.again.is_called());
}

#[test]
fn what_it_tells_of_itself() {
    let cable = Cable::new();
    let (options, time) = (Options { mac: MAC, mtu: Some(1400) }, FakeTime::new());
    let unlimited = || limiters(&time, RateLimit::default(), RateLimit::default());
    let device = Net::new(vec![cable.clone()], &options, unlimited()).unwrap();
    let identity = device.identity();
    assert_eq!((identity.device_type, identity.queue_sizes.len()), (1, 3));
    let bits = [0, 1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 20, 21, 23, 54, 55, 56];
    let bits = bits.iter().fold(0, |bits: u64, b| bits | 1 << b);
    assert_eq!(identity.features, bits);
    assert_eq!(identity.config.bytes(), [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0x78, 5]);
    let device = Net::new(vec![cable.clone(); 4], &options, unlimited()).unwrap();
    assert_eq!(device.identity().features, bits | MQ);
    assert_eq!((device.identity().queue_sizes.len(), device.identity().config.bytes()[8]), (9, 4));
    for wrong in [0, 17] {
        assert!(Net::new(vec![cable.clone(); wrong], &options, unlimited()).is_err());
    }
}

#[test]
fn only_what_the_driver_takes_is_offloaded_to_it() {
    let f = fixture(GUEST_CSUM | GUEST_TSO4 | 1 << 54, 16);
    assert_eq!(f.cable.ends().offloads, Offloads { checksum: true, tso4: true, ..Offloads::default() });
    let f = fixture(GUEST_TSO4, 16);
    assert_eq!(f.cable.ends().offloads, Offloads::default(), "segments need checksums");
    let f = fixture(GUEST_CSUM | 1 << 9, 16);
    let checksum = Offloads { checksum: true, ..Offloads::default() };
    assert_eq!(f.cable.ends().offloads, checksum, "a tap refuses congestion notification without segments");
}

#[test]
fn a_reset_lets_go_of_guest_memory() {
    let mut f = fixture(MRG, 16);
    let room = f.guest.room(100);
    f.guest.ring(RX).add(&[room]);
    f.arrives(frame(1000));
    f.wake(Wake::Source(0));
    f.device.reset();
    assert_eq!(Arc::strong_count(&f.guest.memory), Arc::strong_count(&Guest::new(&[16, 16, 16]).memory));
    f.wake(Wake::Source(0));
    f.wake(Wake::Queue(1));
}

proptest! {
    /// Whatever the sizes of buffers and frames, frames arrive whole and in order, or not at all.
    #[test]
    fn frames_are_whole_or_not_there(
        rooms in prop::collection::vec(1u32..3000, 1..40),
        frames in prop::collection::vec(1usize..5000, 1..20),
        mergeable in any::<bool>(),
    ) {
        let mut f = fixture(if mergeable { MRG } else { 0 }, 64);
        let mut offered = Vec::new();
        for len in &rooms {
            let room = f.guest.room(*len);
            offered.push((f.guest.ring(RX).add(&[room]), room));
        }
        for len in &frames {
            f.arrives(frame(*len));
        }
        f.wake(Wake::Source(0));
        let used = f.guest.ring(RX).used();
        let mut sent = frames.iter();
        let mut used = used.iter().zip(&offered);
        while let Some(((head, len), (offered_head, room))) = used.next() {
            prop_assert_eq!(head, offered_head);
            let mut bytes = f.guest.bytes(*room)[..*len as usize].to_vec();
            // A count in a header that is itself spread is looked for where it is.
            let mut count = None;
            let mut parts = 1;
            while count.is_none_or(|count| parts < count) {
                if bytes.len() >= 12 && count.is_none() {
                    count = Some(u16::from_le_bytes([bytes[10], bytes[11]]));
                    continue;
                }
                let ((_, len), (_, room)) = used.next().expect("all parts of a frame");
                bytes.extend(&f.guest.bytes(*room)[..*len as usize]);
                parts += 1;
            }
            prop_assert_eq!(count, Some(parts));
            bytes[10..12].fill(0);
            prop_assert!(sent.any(|len| frame(*len) == bytes), "a frame that was sent, in order");
        }
    }

    /// Rings full of noise never bring the device down.
    #[test]
    fn noise_in_the_rings(noise in prop::collection::vec(any::<u8>(), 0x2000..0x2001), kicks in 1u16..4) {
        let mut f = fixture(MRG, 16);
        f.guest.memory.write_slice(&noise, GuestAddress(0x1000)).unwrap();
        for n in 0..kicks {
            f.arrives(frame(1000));
            if f.device.wake(Wake::Queue(n % 2)).is_err() {
                break;
            }
        }
        f.device.reset();
    }
}

#[test]
fn buffers_taken_ahead_of_a_frame_are_found_again_by_the_next_device() {
    let mut f = fixture(MRG, 16);
    let rooms: Vec<Buffer> = (0..4).map(|_| f.guest.room(1526)).collect();
    let heads: Vec<u16> = rooms.iter().map(|room| f.guest.ring(RX).add(&[*room])).collect();
    f.arrives(frame(60));
    f.wake(Wake::Source(0));
    assert_eq!(f.guest.ring(RX).used(), [(heads[0], 72)]);
    let positions = f.device.positions();
    assert_eq!(positions[RX], Position { next_available: 1, next_used: 1 });
    let queues = f.guest.queues_at(&positions);
    f.device.activate(MRG, queues).unwrap();
    f.arrives(frame(70));
    f.wake(Wake::Source(0));
    assert_eq!(f.guest.ring(RX).used(), [(heads[1], 82)]);
}

/// The control queue's number, where there are several pairs.
fn control(f: &Fixture) -> usize {
    2 * f.cables.len()
}

impl Fixture {
    /// A command on the control queue of this number. Returns the answer.
    fn command_on(&mut self, queue: usize, command: &[u8]) -> Option<u8> {
        let (out, room) = (self.guest.buffer(command), self.guest.room(1));
        self.guest.memory.write_obj(0xee_u8, GuestAddress(room.address)).unwrap();
        let head = self.guest.ring(queue).add(&[out, room]);
        self.wake(Wake::Queue(queue as u16));
        let used = self.guest.ring(queue).used();
        assert!(used.is_empty() || used == [(head, 1)], "{used:?}");
        (!used.is_empty()).then(|| self.guest.bytes(room)[0])
    }

    fn command(&mut self, command: &[u8]) -> u8 {
        self.command_on(control(self), command).expect("an answer")
    }
}

const DONE: u8 = 0;
const REFUSED: u8 = 1;

fn frame_to(address: [u8; 6]) -> Vec<u8> {
    let mut frame = frame(60);
    frame[12..18].copy_from_slice(&address);
    frame
}

#[test]
fn several_pairs_carry_frames_when_the_driver_says_so() {
    let mut f = with_pairs(3, MRG | CTRL | MQ, 16);
    let enabled = |f: &Fixture| f.cables.iter().map(|c| c.ends().enabled).collect::<Vec<_>>();
    assert_eq!((enabled(&f), f.count("queue_pairs")), (vec![true, false, false], 1));
    let room = f.guest.room(200);
    let head = f.guest.ring(2).add(&[room]);
    let out = f.guest.buffer(&frame(60));
    f.guest.ring(3).add(&[out]);
    f.cables[1].ends().to_guest.push_back(frame(60));
    f.wake(Wake::Source(1));
    f.wake(Wake::Queue(3));
    assert_eq!((f.guest.ring(2).used(), f.guest.ring(3).used()), (vec![], vec![]), "not in use");
    assert_eq!(f.command(&[4, 0, 2, 0]), DONE);
    assert_eq!((enabled(&f), f.count("queue_pairs")), (vec![true, true, false], 2));
    assert_eq!(f.guest.ring(2).used(), [(head, 72)], "at once");
    assert_eq!(f.guest.ring(3).used().len(), 1);
    assert_eq!(f.cables[1].ends().from_guest.len(), 1);
    for wrong in [0, 4, 0xffff] {
        let [low, high] = u16::to_le_bytes(wrong);
        assert_eq!(f.command(&[4, 0, low, high]), REFUSED, "{wrong}");
    }
    assert_eq!(f.count("queue_pairs"), 2);
    f.device.reset();
    assert_eq!(enabled(&f), [true, false, false]);
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third() {
    let mut f = with_pairs(3, MRG | CTRL, 16);
    assert_eq!(f.command_on(2, &[0, 0, 1]), Some(DONE));
    assert_eq!(f.command_on(2, &[4, 0, 2, 0]), Some(REFUSED));
    assert_eq!(f.command_on(6, &[0, 0, 1]), None);
    // A driver that wants none has none.
    let mut f = fixture(MRG, 16);
    assert_eq!(f.command_on(2, &[0, 0, 1]), None);
}

#[test]
fn what_is_no_command_is_refused() {
    let mut f = fixture(MRG | CTRL | CTRL_OFFLOADS | GUEST_CSUM, 16);
    let table = |count: u32, addresses: usize| {
        [&[1, 0][..], &count.to_le_bytes(), &vec![2; 6 * addresses], &0u32.to_le_bytes()].concat()
    };
    assert_eq!(f.command(&table(2, 2)), DONE);
    for wrong in [
        vec![],
        vec![0],
        vec![0, 0],
        vec![0, 6, 1],
        vec![0, 0, 1, 1],
        vec![9, 0, 1],
        vec![1, 1, 2, 0, 0, 0, 0],
        vec![1, 1, 1, 0, 0, 0, 0, 9],
        table(3, 2),
        table(u32::MAX, 2),
        vec![1, 0, 0, 0, 0],
        vec![2, 0, 1, 0],
        vec![4, 0, 1],
        vec![5, 0, 1],
        // Segments that were not negotiated, and what is no offload.
        [&[5, 0][..], &(1u64 << 7).to_le_bytes()].concat(),
        [&[5, 0][..], &MRG.to_le_bytes()].concat(),
    ] {
        assert_eq!(f.command(&wrong), REFUSED, "{wrong:?}");
    }
    // Without room for an answer there is none; with a bad address the queue goes on.
    let (out, room) = (f.guest.buffer(&[0, 0, 1]), f.guest.room(1));
    f.guest.ring(2).add(&[out]);
    f.guest.ring(2).add(&[Buffer::readable(1 << 40, 3), room]);
    f.wake(Wake::Queue(2));
    assert_eq!(f.guest.ring(2).used().iter().map(|(_, len)| *len).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(f.guest.bytes(room), [REFUSED]);
    assert_eq!((f.count("commands"), f.count("refused")), (1, 18));
}

#[test]
fn the_driver_says_which_frames_it_wants() {
    let mut f = fixture(MRG | CTRL, 64);
    const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
    let come = |f: &mut Fixture| {
        for address in [MAC, OTHER, GROUP, [0xff; 6]] {
            let room = f.guest.room(100);
            f.guest.ring(RX).add(&[room]);
            f.arrives(frame_to(address));
        }
        f.wake(Wake::Source(0));
        f.guest.ring(RX).used().len()
    };
    assert_eq!(come(&mut f), 4, "all, until it says otherwise");
    assert_eq!(f.command(&[0, 0, 0]), DONE);
    assert_eq!((come(&mut f), f.count("rx_filtered")), (2, 2));
    let table = [&[1, 0][..], &[1, 0, 0, 0], &OTHER, &[1, 0, 0, 0], &GROUP].concat();
    assert_eq!(f.command(&table), DONE);
    assert_eq!(come(&mut f), 4);
    assert_eq!(f.command(&[0, 5, 1]), DONE);
    assert_eq!((come(&mut f), f.count("rx_filtered")), (3, 3));
    // The next run has its own again.
    f.device.reset();
    f.guest = Guest::new(&[64, 64, 64]);
    f.device.activate(MRG | CTRL, f.guest.queues()).unwrap();
    assert_eq!(come(&mut f), 4);
}

#[test]
fn an_address_that_ends_in_the_spill_is_read_whole() {
    let mut f = fixture(MRG | CTRL, 16);
    assert_eq!(f.command(&[0, 0, 0]), DONE);
    let room = f.guest.room(15);
    f.guest.ring(RX).add(&[room]);
    let mut other = MAC;
    other[5] += 1;
    f.arrives(frame_to(other));
    f.arrives(frame_to(MAC));
    f.wake(Wake::Source(0));
    assert_eq!((f.guest.ring(RX).used(), f.count("rx_filtered")), (vec![], 1), "one waits for room");
    let rest = f.guest.room(100);
    f.guest.ring(RX).add(&[rest]);
    f.wake(Wake::Queue(0));
    assert_eq!(f.guest.ring(RX).used().len(), 2);
    assert_eq!(f.guest.bytes(room)[12..15], MAC[..3]);
}

#[test]
fn the_driver_can_change_the_address() {
    let mut f = fixture(MRG | CTRL, 16);
    let new = [2, 0, 0, 0, 0, 9];
    assert_eq!(f.command(&[&[1, 1][..], &new].concat()), DONE);
    assert_eq!(f.device.identity().config.bytes()[..6], new);
    assert_eq!(f.command(&[1, 1, 3, 0, 0, 0, 0, 9]), REFUSED, "an address of many");
    f.device.reset();
    assert_eq!(f.device.identity().config.bytes()[..6], MAC);
}

#[test]
fn the_driver_announces_itself_when_it_is_asked_to() {
    let mut f = fixture(MRG | CTRL | STATUS | ANNOUNCE, 16);
    assert_eq!(f.device.command(&DeviceCommand::Announce).unwrap(), DeviceAnswer::Done);
    assert_eq!((f.device.identity().config.bytes()[6], f.guest.interrupts.of_config()), (3, 1));
    assert_eq!(f.command(&[3, 0]), DONE);
    assert_eq!((f.device.identity().config.bytes()[6], f.guest.interrupts.of_config()), (1, 1));
    let mut f = fixture(MRG | CTRL, 16);
    let refused = f.device.command(&DeviceCommand::Announce);
    assert!(matches!(refused, Err(CommandError::Unsupported)), "this driver cannot");
    f.device.reset();
    assert!(f.device.command(&DeviceCommand::Announce).is_err());
}

#[test]
fn offloads_change_while_frames_come() {
    let mut f = fixture(MRG | CTRL | CTRL_OFFLOADS | GUEST_CSUM | GUEST_TSO4, 64);
    let offloads = |f: &Fixture| f.cable.ends().offloads;
    assert_eq!(offloads(&f), Offloads { checksum: true, tso4: true, ..Offloads::default() });
    assert_eq!(f.command(&[&[5, 0][..], &GUEST_CSUM.to_le_bytes()].concat()), DONE);
    assert_eq!(offloads(&f), Offloads { checksum: true, ..Offloads::default() });
    assert_eq!(f.command(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), DONE);
    assert_eq!(offloads(&f), Offloads::default());
    // Nothing large is waited for any more.
    let room = f.guest.room(2048);
    f.guest.ring(RX).add(&[room]);
    f.arrives(frame(60));
    f.wake(Wake::Source(0));
    assert_eq!(f.guest.ring(RX).used().len(), 1);
}

fn bucket(per_second: u64, burst: u64) -> Option<TokenBucket> {
    Some(TokenBucket { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
}

#[test]
fn each_direction_has_its_limit() {
    let receive = RateLimit { bandwidth: bucket(6000, 60), operations: None };
    let transmit = RateLimit { bandwidth: None, operations: bucket(10, 2) };
    let mut f = limited(1, MRG, 64, receive, transmit);
    for _ in 0..4 {
        let (room, out) = (f.guest.room(200), f.guest.buffer(&frame(60)));
        f.guest.ring(RX).add(&[room]);
        f.guest.ring(TX).add(&[out]);
        f.arrives(frame(60));
    }
    f.wake(Wake::Source(0));
    assert_eq!((f.guest.ring(RX).used().len(), f.guest.ring(TX).used().len()), (1, 2));
    assert_eq!(f.cable.ends().to_guest.len(), 3, "the others stay with the port");
    assert_eq!(f.time.alarm_ns(), Some(100_000_000), "the last one set, for the next to send");
    f.wake(Wake::Queue(1));
    f.wake(Wake::Source(0));
    assert_eq!((f.guest.ring(RX).used().len(), f.guest.ring(TX).used().len()), (0, 0));
    f.time.pass_ns(1_000_000);
    f.wake(Wake::Source(2));
    assert_eq!(f.guest.ring(RX).used().len(), 1);
    f.time.pass_ns(99_000_000);
    f.wake(Wake::Source(3));
    assert_eq!((f.guest.ring(RX).used().len(), f.guest.ring(TX).used().len()), (1, 1));
    let unlimited =
        DeviceCommand::LimitFrames { receive: RateLimit::default(), transmit: RateLimit::default() };
    assert_eq!(f.device.command(&unlimited).unwrap(), DeviceAnswer::Done);
    f.wake(Wake::Source(3));
    assert_eq!((f.guest.ring(RX).used().len(), f.guest.ring(TX).used().len()), (1, 1));
    assert_eq!((f.count("rx_throttled"), f.count("tx_throttled")), (3, 2));
}

#[test]
fn a_limit_is_shared_by_all_pairs() {
    let transmit = RateLimit { bandwidth: None, operations: bucket(1000, 1) };
    let mut f = limited(2, MRG | CTRL | MQ, 64, RateLimit::default(), transmit);
    assert_eq!(f.command(&[4, 0, 2, 0]), DONE);
    let out = f.guest.buffer(&frame(60));
    for queue in [1, 3] {
        for _ in 0..20 {
            f.guest.ring(queue).add(&[out]);
        }
        f.wake(Wake::Queue(queue as u16));
    }
    for _ in 0..20 {
        f.time.pass_to_alarm();
        f.wake(Wake::Source(4));
    }
    let sent: Vec<usize> = f.cables.iter().map(|cable| cable.ends().from_guest.len()).collect();
    assert_eq!(sent.iter().sum::<usize>(), 21);
    assert!(sent.iter().all(|&count| count >= 10), "{sent:?}");
}

proptest! {
    /// Whatever the driver says on its control queue, it is answered, and the card goes on.
    #[test]
    fn any_command_is_answered(
        commands in prop::collection::vec((0u8..7, 0u8..7, prop::collection::vec(any::<u8>(), 0..40)), 1..30),
    ) {
        let mut f = with_pairs(2, MRG | CTRL | MQ | CTRL_OFFLOADS | STATUS | ANNOUNCE, 16);
        for (class, command, data) in &commands {
            let answer = f.command(&[&[*class, *command][..], data].concat());
            prop_assert!(answer <= REFUSED);
            f.arrives(frame(60));
            f.wake(Wake::Source(0));
        }
        prop_assert_eq!(f.count("commands") + f.count("refused"), commands.len() as u64);
    }
}

#[test]
fn the_offloads_that_the_driver_has_chosen_are_remembered() {
    let features = MRG | CTRL | CTRL_OFFLOADS | GUEST_CSUM | GUEST_TSO4;
    let mut f = fixture(features, 16);
    let as_born = f.device.save().unwrap();
    assert_eq!(as_born, DeviceState::Net { pairs: 1, offloads: None });
    let command = [&[5, 0][..], &GUEST_CSUM.to_le_bytes()].concat();
    assert_eq!(f.command(&command), DONE);
    let (saved, positions) = (f.device.save().unwrap(), f.device.positions());
    let queues = f.guest.queues_at(&positions);
    f.device.activate(features, queues).unwrap();
    assert!(f.cable.ends().offloads.tso4, "as negotiated");
    f.device.restore(&saved).unwrap();
    assert_eq!(f.cable.ends().offloads, Offloads { checksum: true, ..Offloads::default() });
    assert_eq!(f.device.save().unwrap(), saved);
    for offloads in [CTRL, GUEST_CSUM | 1 << 63, u64::MAX] {
        f.device.restore(&DeviceState::Net { pairs: 1, offloads: Some(offloads) }).unwrap_err();
    }
    // What was saved before this was.
    let old: DeviceState = serde_json::from_str(r#"{"net":{"pairs":1}}"#).unwrap();
    assert_eq!(old, as_born);
    assert_eq!(serde_json::to_string(&as_born).unwrap(), r#"{"net":{"pairs":1}}"#);
}

#[test]
fn the_pairs_that_the_driver_uses_are_remembered() {
    let mut f = with_pairs(3, MRG | CTRL | MQ, 16);
    assert_eq!(f.command(&[4, 0, 2, 0]), DONE);
    let (saved, positions) = (f.device.save().unwrap(), f.device.positions());
    assert_eq!(positions.len(), 7);
    assert_eq!(positions[6], Position { next_available: 1, next_used: 1 }, "of the control queue");
    let queues = f.guest.queues_at(&positions);
    f.device.activate(MRG | CTRL | MQ, queues).unwrap();
    assert_eq!(f.count("queue_pairs"), 1);
    f.device.restore(&saved).unwrap();
    assert_eq!(f.count("queue_pairs"), 2);
    for pairs in [0, 4, u16::MAX] {
        f.device.restore(&DeviceState::Net { pairs, offloads: None }).unwrap_err();
    }
    f.device.reset();
    assert_eq!(f.device.save(), None);
    f.device.restore(&saved).unwrap_err();
}
