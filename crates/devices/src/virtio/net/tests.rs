#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex},
};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{FRAMES_PER_WAKE, Net, Offloads, Options, Port};
use crate::virtio::{
    Again, Buffers, Position, VirtioDevice, Wake,
    testing::{Buffer, Guest},
};

const RX: usize = 0;
const TX: usize = 1;
const MRG: u64 = 1 << 15;
const GUEST_CSUM: u64 = 1 << 1;
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
    /// What sending answers, if not that it is done.
    failure: Option<io::ErrorKind>,
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
    fn receive(&mut self, buffers: &Buffers, spill: &mut [u8]) -> io::Result<usize> {
        let mut ends = self.ends();
        let frame = ends.to_guest.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        if frame.is_empty() {
            return Err(io::Error::other("the cable is cut"));
        }
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
    cable: Cable,
}

fn fixture(features: u64, size: u16) -> Fixture {
    let guest = Guest::new(&[size, size]);
    let cable = Cable::new();
    let mut device = Net::new(cable.clone(), &Options { mac: MAC, mtu: None }).unwrap();
    device.activate(features, guest.queues()).unwrap();
    Fixture { guest, device, cable }
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
    let device = Net::new(cable.clone(), &Options { mac: MAC, mtu: Some(1400) }).unwrap();
    let identity = device.identity();
    assert_eq!((identity.device_type, identity.queue_sizes.len()), (1, 2));
    let bits =
        [0, 1, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 54, 55, 56].iter().fold(0, |bits: u64, b| bits | 1 << b);
    assert_eq!(identity.features, bits);
    assert_eq!(identity.config.bytes(), [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0x78, 5]);
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
    assert_eq!(Arc::strong_count(&f.guest.memory), Arc::strong_count(&Guest::new(&[16, 16]).memory));
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
