#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex},
};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Backend, Block, Completion, Error, Operation, Options, Request};
use crate::{
    rate_limit::{RateLimit, RateLimiter, TokenBucket},
    virtio::{
        CommandError, DeviceAnswer, DeviceCommand, Position, VirtioDevice, Wake,
        testing::{Buffer, FakeTime, Guest, Ring},
    },
};

const SECTORS: u64 = 64;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const F_FLUSH: u64 = 1 << 9;

/// A disk in memory, whose requests end when the test says so.
#[derive(Clone)]
struct Ram {
    inner: Arc<Mutex<Inner>>,
    event: Arc<EventFd>,
}

struct Inner {
    data: Vec<u8>,
    waiting: VecDeque<Request>,
    ended: VecDeque<Completion>,
    log: Vec<String>,
    /// Serve at once on submit.
    prompt: bool,
    /// What the driver does while requests are submitted.
    meanwhile: Option<Box<dyn FnMut() + Send>>,
    fail: Option<io::ErrorKind>,
}

impl Ram {
    fn new(prompt: bool) -> Self {
        let inner = Inner {
            data: (0..SECTORS * 512).map(|n| (n / 512) as u8).collect(),
            waiting: VecDeque::new(),
            ended: VecDeque::new(),
            log: Vec::new(),
            prompt,
            meanwhile: None,
            fail: None,
        };
        Self { inner: Arc::new(Mutex::new(inner)), event: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()) }
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.lock().unwrap().log)
    }

    fn waiting(&self) -> usize {
        self.inner.lock().unwrap().waiting.len()
    }

    /// End the waiting request at this position.
    fn finish(&self, position: usize) {
        let mut inner = self.inner.lock().unwrap();
        let request = inner.waiting.remove(position).unwrap();
        inner.serve(request);
        self.event.write(1).unwrap();
    }
}

impl Inner {
    fn serve(&mut self, request: Request) {
        if let Some(kind) = self.fail {
            self.ended.push_back(Completion { request, result: Err(kind.into()) });
            return;
        }
        let line = match &request.operation {
            Operation::Read { offset, buffers } => {
                let mut at = *offset as usize;
                for slice in buffers.slices() {
                    slice.copy_from(&self.data[at..at + slice.len()]);
                    at += slice.len();
                }
                format!("read {} {}", offset / 512, buffers.len() / 512)
            }
            Operation::Write { offset, buffers } => {
                let mut at = *offset as usize;
                for slice in buffers.slices() {
                    slice.read_slice(&mut self.data[at..at + slice.len()], 0).unwrap();
                    at += slice.len();
                }
                format!("write {} {}", offset / 512, buffers.len() / 512)
            }
            Operation::Flush => "flush".into(),
            Operation::Discard { offset, len } => format!("discard {} {}", offset / 512, len / 512),
            Operation::WriteZeroes { offset, len, unmap } => {
                self.data[*offset as usize..(*offset + *len) as usize].fill(0);
                format!("zero {} {}{}", offset / 512, len / 512, if *unmap { " unmap" } else { "" })
            }
        };
        self.log.push(line);
        self.ended.push_back(Completion { request, result: Ok(()) });
    }
}

impl Backend for Ram {
    fn capacity(&self) -> u64 {
        self.inner.lock().unwrap().data.len() as u64 + 100
    }
    fn grow(&mut self, bytes: u64) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        if let Some(kind) = inner.fail {
            return Err(kind.into());
        }
        // As `capacity` has it.
        inner.data.resize(bytes as usize - 100, 0);
        Ok(())
    }
    fn discard_granularity(&self) -> Option<u32> {
        Some(4096)
    }
    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }
    fn enqueue(&mut self, request: Request) {
        self.inner.lock().unwrap().waiting.push_back(request);
    }
    fn submit(&mut self) {
        if let Some(meanwhile) = &mut self.inner.lock().unwrap().meanwhile {
            meanwhile();
        }
        if self.inner.lock().unwrap().prompt {
            self.wait_idle();
        }
    }
    fn completed(&mut self) -> Option<Completion> {
        self.inner.lock().unwrap().ended.pop_front()
    }
    fn wait_idle(&mut self) {
        let mut inner = self.inner.lock().unwrap();
        while let Some(request) = inner.waiting.pop_front() {
            inner.serve(request);
        }
    }
}

struct Fixture {
    guest: Guest,
    device: Block<Ram>,
    disk: Ram,
    time: FakeTime,
}

fn options() -> Options {
    Options { serial: "vol-0123456789abcdef".into(), read_only: false, queues: 1 }
}

fn fixture_with(prompt: bool, features: u64, options: &Options) -> Fixture {
    limited(prompt, features, options, RateLimit::default())
}

fn limited(prompt: bool, features: u64, options: &Options, limit: RateLimit) -> Fixture {
    let sizes = vec![256; usize::from(options.queues)];
    let guest = Guest::with_memory(&sizes, &[(0, 3 << 20), (3 << 20, 13 << 20)]);
    let disk = Ram::new(prompt);
    let time = FakeTime::new();
    let mut device = Block::new(disk.clone(), options, RateLimiter::new(limit, time.timer())).unwrap();
    device.activate(features, guest.queues()).unwrap();
    Fixture { guest, device, disk, time }
}

fn unlimited() -> RateLimiter {
    RateLimiter::new(RateLimit::default(), FakeTime::new().timer())
}

fn fixture() -> Fixture {
    fixture_with(true, F_FLUSH, &options())
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

impl Fixture {
    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.guest.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    fn write(&self, address: u64, data: &[u8]) {
        self.guest.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    fn add_indirect(&mut self, buffers: &[Buffer]) {
        let table = self.guest.allocate(16 * buffers.len());
        let descriptors = Ring::new(Arc::clone(&self.guest.memory), table, 256);
        for (index, buffer) in (0..).zip(buffers) {
            let more = usize::from(index) + 1 < buffers.len();
            let flags = u16::from(more) | u16::from(buffer.writable) << 1;
            descriptors.write_descriptor(index, buffer.address, buffer.len, flags, index + 1);
        }
        let (len, head) = (16 * buffers.len() as u32, 255);
        self.guest.ring(0).write_descriptor(head, table, len, 4, 0);
        self.guest.ring(0).make_available(head);
    }

    fn kick(&mut self) {
        self.device.wake(Wake::Queue(0)).unwrap();
    }

    /// One request of header, pieces and status; returns the status byte and the used length.
    fn request(&mut self, kind: u32, sector: u64, pieces: &[Buffer]) -> (u8, u32) {
        let mut chain = vec![self.guest.buffer(&header(kind, sector))];
        chain.extend_from_slice(pieces);
        let status = self.guest.room(1);
        chain.push(status);
        let head = self.guest.ring(0).add(&chain);
        self.kick();
        let used = self.guest.ring(0).used();
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, head);
        (self.read(status.address, 1)[0], used[0].1)
    }

    fn ranged(&mut self, kind: u32, data: &[u8]) -> u8 {
        let piece = self.guest.buffer(data);
        self.request(kind, 0, &[piece]).0
    }
}

#[test]
fn reads_and_writes_sectors() {
    let mut f = fixture();
    let data = f.guest.buffer(&[7; 1024]);
    assert_eq!(f.request(WRITE, 3, &[data]), (OK, 1));
    let room = f.guest.room(2048);
    assert_eq!(f.request(READ, 2, &[room]), (OK, 2049));
    let read = f.read(room.address, 2048);
    assert_eq!(read[..512], [2; 512]);
    assert_eq!(read[512..1536], [7; 1024]);
    assert_eq!(read[1536..], [5; 512]);
    assert_eq!(f.disk.log(), ["write 3 2", "read 2 4"]);
    assert!(f.guest.interrupts.of_queue(0) >= 2);
}

#[test]
fn the_other_requests() {
    let mut f = fixture();
    assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
    let id = f.guest.room(20);
    assert_eq!(f.request(GET_ID, 0, &[id]), (OK, 21));
    assert_eq!(f.read(id.address, 20), b"vol-0123456789abcdef");
    assert_eq!(f.ranged(DISCARD, &range(8, 8, 0)), OK);
    assert_eq!(f.ranged(ZEROES, &range(1, 2, 0)), OK);
    assert_eq!(f.ranged(ZEROES, &range(0, 64, 1)), OK);
    assert_eq!(f.disk.log(), ["flush", "discard 8 8", "zero 1 2", "zero 0 64 unmap"]);
    assert_eq!(f.ranged(ZEROES, &range(0, 0, 0)), OK);
    assert_eq!(f.request(READ, 0, &[]), (OK, 1));
    assert_eq!(f.disk.log(), [""; 0]);
}

#[test]
fn what_makes_no_sense_is_refused_with_a_status() {
    let mut f = fixture();
    let (out, room, short) = (f.guest.buffer(&[1; 512]), f.guest.room(512), f.guest.room(100));
    let id = f.guest.room(19);
    for (kind, sector, pieces, status) in [
        (READ, SECTORS, &[room][..], IOERR),
        (READ, SECTORS - 1, &[room, room], IOERR),
        (READ, u64::MAX, &[room], IOERR),
        (READ, u64::MAX / 512, &[room], IOERR),
        (WRITE, 1 << 55, &[out], IOERR),
        (READ, 0, &[short], IOERR),
        (READ, 0, &[out], IOERR),
        (READ, 0, &[out, room], IOERR),
        (WRITE, 0, &[room], IOERR),
        (WRITE, 0, &[out, room], IOERR),
        (WRITE, 0, &[room, out], IOERR),
        (READ, 0, &[Buffer::writable(1 << 40, 512)], IOERR),
        (READ, 0, &[Buffer::writable(u64::MAX - 5, 512)], IOERR),
        (READ, 0, &[Buffer::writable(0, u32::MAX / 2)], IOERR),
        (GET_ID, 0, &[id], IOERR),
        (99, 0, &[], UNSUPP),
        (2, 0, &[room], UNSUPP),
    ] {
        assert_eq!(f.request(kind, sector, pieces), (status, 1), "{kind} {sector} {pieces:?}");
    }
    for (kind, data, status) in [
        (DISCARD, range(0, 65, 0), IOERR),
        (DISCARD, range(u64::MAX, 1, 0), IOERR),
        (DISCARD, range(0, 1, 1), UNSUPP),
        (DISCARD, range(0, u32::MAX, 0), IOERR),
        (DISCARD, vec![0; 15], IOERR),
        (DISCARD, vec![0; 32], IOERR),
        (ZEROES, range(0, 1, 2), UNSUPP),
        (ZEROES, range(64, 1, 0), IOERR),
    ] {
        assert_eq!(f.ranged(kind, &data), status, "{kind} {data:?}");
    }
    assert_eq!(f.disk.log(), [""; 0], "the disk heard of none of it");
}

#[test]
fn a_device_that_is_quiet_has_answered_all_that_it_had_begun() {
    // Without FLUSH each write is followed by a flush of ours before it is answered.
    let mut f = fixture_with(false, 0, &options());
    let (data, status) = (f.guest.buffer(&[7; 512]), f.guest.room(1));
    let header = f.guest.buffer(&header(WRITE, 3));
    f.guest.ring(0).add(&[header, data, status]);
    f.kick();
    assert_eq!((f.disk.waiting(), f.guest.ring(0).used().len()), (1, 0));
    f.device.quiesce().unwrap();
    assert_eq!(f.disk.log(), ["write 3 1", "flush"]);
    assert_eq!(f.guest.ring(0).used().len(), 1);
    assert_eq!(f.read(status.address, 1), [OK]);
    f.device.quiesce().unwrap();
}

#[test]
fn a_chain_without_room_for_a_status_is_given_back() {
    let mut f = fixture();
    let out = f.guest.buffer(&header(READ, 0));
    f.guest.ring(0).add(&[out]);
    f.guest.ring(0).add(&[out, Buffer::writable(1 << 40, 1)]);
    f.guest.ring(0).add(&[out, Buffer::writable(0x10_0000, 0)]);
    f.kick();
    assert_eq!(f.guest.ring(0).used().iter().map(|(_, len)| *len).collect::<Vec<_>>(), [0, 0, 0]);
    let short = f.guest.buffer(&[0; 15]);
    let status = f.guest.room(1);
    f.guest.ring(0).add(&[short, status]);
    f.kick();
    assert_eq!(f.guest.ring(0).used().len(), 1);
    assert_eq!(f.read(status.address, 1), [IOERR]);
}

#[test]
fn framing_says_nothing() {
    let mut f = fixture();
    // The header in three pieces, the second half of the data together with the status, all indirect.
    let header = f.guest.buffer(&header(READ, 9)).address;
    let data = f.guest.allocate(513);
    let pieces = [
        Buffer::readable(header, 1),
        Buffer::readable(header + 1, 0),
        Buffer::readable(header + 1, 7),
        Buffer::readable(header + 8, 8),
        Buffer::writable(data, 200),
        Buffer::writable(data + 200, 313),
    ];
    f.write(data + 512, &[0xee]);
    f.add_indirect(&pieces);
    f.kick();
    assert_eq!(f.guest.ring(0).used()[0].1, 513);
    assert_eq!(f.read(data, 513), [&[9; 512][..], &[OK]].concat());
}

#[test]
fn an_indirect_table_without_end_is_refused() {
    let mut f = fixture();
    let room = f.guest.room(1);
    f.add_indirect(&vec![room; 5000]);
    let header = f.guest.buffer(&header(READ, 0));
    let many: Vec<Buffer> = [header]
        .into_iter()
        .chain((0..300).map(|_| Buffer::writable(room.address, 0)))
        .chain([room])
        .collect();
    f.add_indirect(&many);
    f.kick();
    assert_eq!(f.guest.ring(0).used().len(), 2);
}

#[test]
fn a_read_only_disk_refuses_to_be_written() {
    let mut f = fixture_with(true, F_FLUSH, &Options { read_only: true, ..options() });
    let identity = f.device.identity();
    assert_eq!(identity.features & 1 << 5, 1 << 5);
    assert_eq!(identity.features & (1 << 13 | 1 << 14), 0);
    let out = f.guest.buffer(&[1; 512]);
    assert_eq!(f.request(WRITE, 0, &[out]).0, IOERR);
    assert_eq!(f.ranged(DISCARD, &range(0, 1, 0)), IOERR);
    assert_eq!(f.ranged(ZEROES, &range(0, 1, 0)), IOERR);
    assert_eq!(f.disk.log(), [""; 0]);
}

#[test]
fn without_flush_every_write_is_durable_before_it_completes() {
    let mut f = fixture_with(true, 0, &options());
    let out = f.guest.buffer(&[1; 512]);
    assert_eq!(f.request(WRITE, 0, &[out]), (OK, 1));
    assert_eq!(f.ranged(ZEROES, &range(0, 1, 0)), OK);
    assert_eq!(f.disk.log(), ["write 0 1", "flush", "zero 0 1", "flush"]);
}

#[test]
fn the_disk_s_errors_reach_the_driver() {
    let mut f = fixture();
    let room = f.guest.room(512);
    f.disk.inner.lock().unwrap().fail = Some(io::ErrorKind::Other);
    assert_eq!(f.request(READ, 0, &[room]), (IOERR, 1));
    f.disk.inner.lock().unwrap().fail = Some(io::ErrorKind::Unsupported);
    assert_eq!(f.ranged(ZEROES, &range(0, 1, 0)), UNSUPP);
    assert!(f.device.metrics().contains(&("errors", 1)));
}

#[test]
fn requests_may_end_out_of_order() {
    let mut f = fixture_with(false, F_FLUSH, &options());
    let heads: Vec<u16> = (0..3)
        .map(|n| {
            let (header, room) = (f.guest.buffer(&header(READ, n)), f.guest.room(513));
            f.guest.ring(0).add(&[header, room])
        })
        .collect();
    f.kick();
    assert_eq!(f.guest.ring(0).used(), []);
    f.disk.finish(2);
    f.disk.finish(0);
    f.device.wake(Wake::Source(0)).unwrap();
    assert_eq!(f.guest.ring(0).used(), [(heads[2], 513), (heads[0], 513)]);
    f.disk.finish(0);
    f.device.wake(Wake::Source(0)).unwrap();
    assert_eq!(f.guest.ring(0).used(), [(heads[1], 513)]);
}

#[test]
fn a_reset_leaves_nothing_under_way() {
    let mut f = fixture_with(false, F_FLUSH, &options());
    let (header_piece, room) = (f.guest.buffer(&header(READ, 5)), f.guest.room(513));
    f.guest.ring(0).add(&[header_piece, room]);
    f.kick();
    assert_eq!(f.disk.waiting(), 1);
    f.device.reset();
    assert_eq!(f.disk.waiting(), 0);
    let unused = Arc::strong_count(&Guest::new(&[256]).memory);
    assert_eq!(Arc::strong_count(&f.guest.memory), unused, "the device lets go of guest memory");
    f.device.wake(Wake::Source(0)).unwrap();
    f.device.wake(Wake::Queue(0)).unwrap();

    // And it works again.
    f.guest = Guest::new(&[256]);
    f.device.activate(F_FLUSH, f.guest.queues()).unwrap();
    let (header_piece, room) = (f.guest.buffer(&header(READ, 5)), f.guest.room(513));
    f.guest.ring(0).add(&[header_piece, room]);
    f.kick();
    f.disk.finish(0);
    f.device.wake(Wake::Source(0)).unwrap();
    assert_eq!(f.guest.ring(0).used().len(), 1);
}

#[test]
fn a_driver_that_offers_more_than_its_queue_holds_waits() {
    // The driver offers the same chain again and again without waiting for it.
    let mut f = fixture_with(false, F_FLUSH, &options());
    let (header, room) = (f.guest.buffer(&header(READ, 5)), f.guest.room(513));
    for _ in 0..100 {
        f.guest.ring(0).add(&[header, room]);
    }
    f.kick();
    assert_eq!(f.disk.waiting(), 100);
    // As if all had been taken, and the ring were full again.
    f.guest.ring(0).set_available_index(100 + 256);
    f.kick();
    assert_eq!(f.disk.waiting(), 256);
}

#[test]
fn what_comes_while_others_are_served_needs_no_kick_and_no_interrupt_of_its_own() {
    let mut f = fixture();
    for _ in 0..5 {
        f.add_read(0, 1);
    }
    // Of the five the device sees one, and one more with each that it submits.
    f.guest.ring(0).set_available_index(1);
    let (memory, available, used) =
        (Arc::clone(&f.guest.memory), f.guest.ring(0).available, f.guest.ring(0).used);
    let mut shown: u16 = 1;
    f.disk.inner.lock().unwrap().meanwhile = Some(Box::new(move || {
        assert_eq!(memory.read_obj::<u16>(GuestAddress(used)).unwrap(), 1, "VRING_USED_F_NO_NOTIFY");
        shown = 5.min(shown + 1);
        memory.write_obj(shown, GuestAddress(available + 2)).unwrap();
    }));
    f.kick();
    assert_eq!((f.used(0), f.guest.interrupts.of_queue(0)), (5, 1));
    assert_eq!(f.read(used, 2), [0, 0], "kicks are wanted again");
}

#[test]
fn a_queue_for_which_no_look_was_left_is_looked_at_in_the_next_wake() {
    let mut f = fixture_with(true, F_FLUSH, &Options { queues: 2, ..options() });
    let chain = [f.guest.buffer(&header(GET_ID, 0)), f.guest.room(20), f.guest.room(1)];
    let head = f.guest.ring(0).add(&chain);
    (1..256).for_each(|_| f.guest.ring(0).make_available(head));
    let (memory, available) = (Arc::clone(&f.guest.memory), f.guest.ring(0).available);
    // 257 looks at the first queue and one at the second; 252 and one; and the last one at the first.
    f.disk.inner.lock().unwrap().meanwhile =
        Some(Box::new(move || memory.write_obj::<u16>(256 + 251, GuestAddress(available + 2)).unwrap()));
    let flags = [0, 1].map(|queue| f.guest.ring(queue).used);
    let kicks_unwanted = |f: &Fixture| flags.map(|flags| f.read(flags, 1) == [1]);
    let wake = |f: &mut Fixture| f.device.wake(Wake::Source(1)).unwrap();
    wake(&mut f);
    assert!(kicks_unwanted(&f)[1] && f.device.again.is_called());
    wake(&mut f);
    assert!(kicks_unwanted(&f) == [false, false] && !f.device.again.is_called());
}

#[test]
fn what_has_ended_is_not_kept_from_the_driver_until_all_has() {
    let mut f = fixture();
    // 32 KiB each, of which 256 are told.
    for _ in 0..17 {
        f.add_read(0, 64);
    }
    f.kick();
    assert_eq!((f.used(0), f.guest.interrupts.of_queue(0)), (17, 3));
}

#[test]
fn a_driver_with_much_under_way_waits() {
    let mut f = fixture_with(false, F_FLUSH, &options());
    f.device.bytes_max = 2048;
    let header = f.guest.buffer(&header(WRITE, 0));
    let data = f.guest.buffer(&[7; 1024]);
    let status = f.guest.room(1);
    for _ in 0..5 {
        f.guest.ring(0).add(&[header, data, status]);
    }
    f.kick();
    assert_eq!(f.disk.waiting(), 2);
    f.device.wake(Wake::Source(1)).unwrap();
    assert_eq!(f.disk.waiting(), 2);
    for (under_way, given_back) in [(2, 1), (2, 1), (2, 1), (1, 1), (0, 1)] {
        f.disk.finish(0);
        f.device.wake(Wake::Source(0)).unwrap();
        assert_eq!((f.disk.waiting(), f.guest.ring(0).used().len()), (under_way, given_back));
    }
}

#[test]
fn what_it_tells_of_itself() {
    let f = fixture();
    let identity = f.device.identity();
    assert_eq!((identity.device_type, identity.queue_sizes), (2, vec![256]));
    let bits = [1, 2, 6, 9, 10, 13, 14].iter().fold(0, |bits: u64, bit| bits | 1 << bit);
    assert_eq!(identity.features, bits);
    let config = identity.config.bytes();
    assert_eq!(config.len(), 60);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(
        config[8..16],
        [1_u32 << 20, 253].map(u32::to_le_bytes).concat(),
        "the largest piece, and how many"
    );
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[44..48], 8u32.to_le_bytes(), "discard alignment in sectors");
}

#[test]
fn bad_options() {
    let long = Options { serial: "x".repeat(21), ..options() };
    assert!(matches!(Block::new(Ram::new(true), &long, unlimited()), Err(Error::Serial(_))));
    let none = Options { queues: 0, ..options() };
    assert!(matches!(Block::new(Ram::new(true), &none, unlimited()), Err(Error::Queues(0))));
}

fn any_piece() -> impl Strategy<Value = Buffer> {
    let address = prop_oneof![8 => 0x10_0000u64..0x40_0000, 1 => Just(0x2f_fff0), 1 => any::<u64>()];
    let len = prop_oneof![4 => Just(512u32), 2 => Just(16), 2 => Just(1), 1 => 0u32..5000, 1 => any::<u32>()];
    (address, len, any::<bool>())
        .prop_map(|(a, l, out)| if out { Buffer::readable(a, l) } else { Buffer::writable(a, l) })
}

proptest! {
    /// Whatever the chain, it is given back once, and only sectors that the disk has are touched.
    #[test]
    fn any_chain_is_given_back(
        kind in prop_oneof![4 => 0u32..15, 1 => any::<u32>()],
        sector in prop_oneof![3 => 0..SECTORS + 2, 1 => any::<u64>()],
        pieces in prop::collection::vec(any_piece(), 0..20),
        indirect in any::<bool>(),
        with_status in any::<bool>(),
    ) {
        let mut f = fixture();
        // The area that the pieces name holds ranges for discards.
        for n in 0..64 {
            f.write(0x10_0000 + n * 16, &range(n, n as u32, (n % 3) as u32));
        }
        let mut chain = vec![f.guest.buffer(&header(kind, sector))];
        chain.extend(pieces);
        let status = f.guest.room(1);
        if with_status {
            chain.push(status);
        }
        if indirect {
            f.add_indirect(&chain);
        } else {
            f.guest.ring(0).add(&chain);
        }
        f.kick();
        prop_assert_eq!(f.guest.ring(0).used().len(), 1);
        prop_assert_eq!(f.disk.waiting(), 0);
        let inner = f.disk.inner.lock().unwrap();
        prop_assert_eq!(inner.data.len() as u64, SECTORS * 512);
    }

    /// Rings full of noise never bring the device down, nor keep it for ever.
    #[test]
    fn noise_in_the_rings(noise in prop::collection::vec(any::<u8>(), 0x3000..0x3001), kicks in 1..4) {
        let mut f = fixture();
        f.write(0x1000, &noise);
        for _ in 0..kicks {
            if f.device.wake(Wake::Queue(0)).is_err() {
                break;
            }
        }
        f.device.reset();
    }
}

#[test]
fn what_the_driver_has_not_flushed_is_written_back_when_asked() {
    let mut f = fixture();
    let data = f.guest.buffer(&[7; 512]);
    assert_eq!(f.request(WRITE, 3, &[data]), (OK, 1));
    f.device.write_back().unwrap();
    assert_eq!(f.disk.log(), ["write 3 1", "flush"]);
    assert_eq!(f.device.positions(), [Position { next_available: 1, next_used: 1 }]);
    f.disk.inner.lock().unwrap().fail = Some(io::ErrorKind::StorageFull);
    assert_eq!(f.device.write_back().unwrap_err().kind(), io::ErrorKind::StorageFull);
    let read_only = Options { read_only: true, ..options() };
    fixture_with(true, F_FLUSH, &read_only).device.write_back().unwrap();
}

impl Fixture {
    /// Adds a request to read so many sectors to a queue.
    fn add_read(&mut self, queue: usize, sectors: u32) -> u16 {
        let chain = [self.guest.buffer(&header(READ, 0)), self.guest.room(512 * sectors), self.guest.room(1)];
        self.guest.ring(queue).add(&chain)
    }

    fn used(&mut self, queue: usize) -> usize {
        self.guest.ring(queue).used().len()
    }

    fn metric(&self, name: &str) -> u64 {
        self.device.metrics().iter().find(|(n, _)| *n == name).unwrap().1
    }
}

fn bucket(per_second: u64, burst: u64) -> Option<TokenBucket> {
    Some(TokenBucket { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
}

#[test]
fn after_a_burst_requests_come_at_their_rate() {
    let mut f = limited(true, F_FLUSH, &options(), RateLimit { bandwidth: None, operations: bucket(100, 4) });
    for _ in 0..10 {
        f.add_read(0, 1);
    }
    f.kick();
    assert_eq!(f.used(0), 4);
    assert_eq!(f.time.alarm_ns(), Some(10_000_000));
    f.kick();
    f.device.wake(Wake::Source(0)).unwrap();
    assert_eq!(f.used(0), 0, "nobody is woken into more than there is");
    for _ in 0..6 {
        f.time.pass_to_alarm();
        f.device.wake(Wake::Source(2)).unwrap();
        assert_eq!(f.used(0), 1);
    }
    assert_eq!((f.time.now_ms(), f.metric("throttled"), f.metric("reads")), (60, 6, 10));
    assert_eq!(f.disk.log().len(), 10);
}

#[test]
fn bytes_are_limited_and_what_moves_none_is_not() {
    let limit = RateLimit { bandwidth: bucket(512_000, 1024), operations: None };
    let mut f = limited(true, F_FLUSH, &options(), limit);
    assert_eq!(f.ranged(ZEROES, &range(0, 64, 0)), OK);
    assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
    f.add_read(0, 16);
    f.add_read(0, 1);
    f.kick();
    assert_eq!(f.used(0), 1, "the first one is larger than the burst, and owes the rest");
    // 7,168 bytes owed, and 512 to go on with: a millisecond's.
    assert_eq!(f.time.alarm_ns(), Some(15_000_000));
    f.time.pass_to_alarm();
    f.device.wake(Wake::Source(2)).unwrap();
    assert_eq!(f.used(0), 1);
}

#[test]
fn a_limit_is_shared_by_all_queues() {
    let options = Options { queues: 3, ..options() };
    let mut f = limited(true, F_FLUSH, &options, RateLimit { bandwidth: None, operations: bucket(1000, 1) });
    assert_eq!(f.device.identity().features & 1 << 12, 1 << 12);
    assert_eq!(f.device.identity().config.bytes()[34..36], 3u16.to_le_bytes());
    for queue in 0..3 {
        for _ in 0..20 {
            f.add_read(queue, 1);
        }
    }
    let mut served = [0; 3];
    for queue in 0..3 {
        f.device.wake(Wake::Queue(queue)).unwrap();
    }
    for _ in 0..30 {
        f.time.pass_to_alarm();
        f.device.wake(Wake::Source(2)).unwrap();
        (0..3).for_each(|queue| served[queue] += f.used(queue));
    }
    assert_eq!(served.iter().sum::<usize>(), 31);
    assert!(served.iter().all(|&count| count >= 10), "{served:?}");
}

#[test]
fn a_limit_can_be_changed_while_requests_wait() {
    let slow = RateLimit { bandwidth: None, operations: bucket(1, 1) };
    let mut f = limited(true, F_FLUSH, &options(), slow);
    for _ in 0..3 {
        f.add_read(0, 1);
    }
    f.kick();
    assert_eq!(f.used(0), 1);
    let answer = f.device.command(&DeviceCommand::LimitRequests(RateLimit::default())).unwrap();
    assert_eq!((answer, f.time.alarm_ns()), (DeviceAnswer::Done, Some(0)));
    f.device.wake(Wake::Source(2)).unwrap();
    assert_eq!(f.used(0), 2);
}

#[test]
fn a_disk_grows_and_the_driver_hears_of_it() {
    let mut f = fixture();
    let resize = |f: &mut Fixture, bytes| f.device.command(&DeviceCommand::Resize { bytes });
    let bytes = 2 * SECTORS * 512;
    let generation = f.device.identity().config.generation();
    assert_eq!(resize(&mut f, bytes).unwrap(), DeviceAnswer::Done);
    assert_eq!(f.device.identity().config.bytes()[..8], (2 * SECTORS).to_le_bytes());
    assert_ne!(f.device.identity().config.generation(), generation);
    assert_eq!(f.guest.interrupts.of_config(), 1);
    let room = f.guest.room(512);
    assert_eq!(f.request(READ, 2 * SECTORS - 2, &[room]), (OK, 513));
    assert_eq!(f.request(READ, 2 * SECTORS, &[room]), (IOERR, 1));
    for wrong in [0, bytes - 512, bytes + 1] {
        let error = resize(&mut f, wrong).unwrap_err();
        assert!(matches!(error, CommandError::Invalid(_)), "{wrong}");
    }
    f.disk.inner.lock().unwrap().fail = Some(io::ErrorKind::StorageFull);
    assert!(matches!(resize(&mut f, bytes + 512), Err(CommandError::Host(_))));
    assert_eq!(f.device.identity().config.bytes()[..8], (2 * SECTORS).to_le_bytes());
    assert_eq!(f.guest.interrupts.of_config(), 1);
    assert!(matches!(f.device.command(&DeviceCommand::Announce), Err(CommandError::Unsupported)));
    // Without a driver it grows all the same; one that cannot be written does not.
    f.disk.inner.lock().unwrap().fail = None;
    f.device.reset();
    resize(&mut f, 4 * SECTORS * 512).unwrap();
    assert_eq!(f.guest.interrupts.of_config(), 1);
    let mut f = fixture_with(true, F_FLUSH, &Options { read_only: true, ..options() });
    assert!(matches!(resize(&mut f, bytes), Err(CommandError::Invalid(_))));
}
