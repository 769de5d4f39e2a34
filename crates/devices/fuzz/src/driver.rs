//! Plays a script against a device, as a hostile driver and an honest event loop.
//!
//! What must hold, whatever the script says:
//! * nothing panics (overflow is checked, and so are the targets' own assertions);
//! * nothing is accessed outside of guest memory ([`crate::memory`]), and nothing is written in it but
//!   used rings and what the driver offered for writing;
//! * no chain comes back that was not taken;
//! * once the driver rests, the device does too, after [`SETTLE_WAKES_MAX`] wakes at most;
//! * the log grows by [`LOG_LINES_MAX`] lines at most;
//! * the device keeps no more than [`HEAP_BYTES_MAX`], and nothing once it is gone.

use std::{fmt::Debug, ops::Range, os::fd::RawFd, sync::Arc};

use arbitrary::Arbitrary;
use ec2vmm_devices::{
    rate_limit::{RateLimit, RateLimiter},
    virtio::{Interrupt, VirtQueue, VirtioDevice, Wake, testing::FakeTime},
};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::{
    heap, log_lines,
    memory::GuestMemory,
    script::{Knob, Overlap, Room, Script, Setup, Step},
};

/// A device and what is behind it.
pub trait Subject {
    type Device: VirtioDevice;
    type Act: for<'a> Arbitrary<'a> + Debug;

    fn device(&mut self) -> &mut Self::Device;
    /// Something happens behind the device.
    fn act(&mut self, act: Self::Act);
    /// The device has been woken: its effects since the last time were within bounds.
    fn after_wake(&mut self);
    /// All that is under way behind the device may end.
    fn let_all_end(&mut self);
}

/// What a device's requests look like.
pub trait Message: for<'a> Arbitrary<'a> + Debug {
    fn bytes(&self) -> Vec<u8>;
}

/// The most that a device may keep, with what this harness keeps of it.
pub const HEAP_BYTES_MAX: usize = 8 << 20;
/// After so many wakes a device has done all that its driver and the host have asked for.
pub const SETTLE_WAKES_MAX: usize = 256;

/// What one script can make a device log, lines.
pub const LOG_LINES_MAX: usize = 64;

/// Plays a script. `subject` makes a device as born, with this memory.
pub fn play<S: Subject, M: Message>(
    memory: &mut GuestMemory,
    subject: impl FnOnce(&GuestMemory) -> S,
    script: Script<M, S::Act>,
) {
    log_lines::watch();
    memory.clear();
    let before = heap::live_bytes();
    let mut play = Play::new(memory, subject);
    play.start(&script.setup);
    let mut setup = script.setup;
    for step in script.steps {
        play.step(step, &mut setup);
        let kept = heap::live_bytes().saturating_sub(before);
        assert!(kept < HEAP_BYTES_MAX, "{kept} bytes are kept");
    }
    play.subject.let_all_end();
    play.settle();
    play.stop();
    drop(play);
    assert!(heap::live_bytes() <= before, "something is left of the device");
    let lines = log_lines::take();
    assert!(lines <= LOG_LINES_MAX, "{lines} log lines");
}

struct Play<'a, S> {
    memory: &'a mut GuestMemory,
    subject: S,
    interrupt: Arc<dyn Interrupt>,
    epoll: Epoll,
    rings: Vec<Ring>,
    active: bool,
    /// What the device may write.
    offered: Vec<Range<u64>>,
    /// The driver has had the device write into what says what it may write: then all is allowed.
    wild: bool,
    /// Where the next buffer goes, and the next indirect table, which nothing else lies on.
    free: u64,
    free_table: u64,
}

struct Ring {
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    next_descriptor: u16,
    next_available: u16,
    /// Chains offered; none once the index has jumped.
    count: Option<u64>,
    used_seen: u16,
    used_count: u64,
    last_head: u16,
}

struct Ignore;

impl Interrupt for Ignore {
    fn used(&self, _queue: u16) {}
    fn config_changed(&self) {}
}

impl<'a, S: Subject> Play<'a, S> {
    fn new(memory: &'a mut GuestMemory, subject: impl FnOnce(&GuestMemory) -> S) -> Self {
        let subject = subject(memory);
        Self {
            memory,
            subject,
            interrupt: Arc::new(Ignore),
            epoll: Epoll::new().expect("a descriptor"),
            rings: Vec::new(),
            active: false,
            offered: Vec::new(),
            wild: false,
            free: BUFFERS.start,
            free_table: TABLES.start,
        }
    }

    /// What the transport and the event loop do at DRIVER_OK.
    fn start(&mut self, setup: &Setup) {
        let identity = self.subject.device().identity();
        self.wild = setup.overlap.0.is_some();
        self.offered.clear();
        let mut at = RINGS_AT;
        self.rings.clear();
        for (index, &max) in identity.queue_sizes.iter().enumerate() {
            let ring = Ring::new(&mut at, index, max, setup);
            self.memory.write(ring.descriptors, &vec![0; (at - ring.descriptors) as usize]);
            self.rings.push(ring);
        }
        assert!(at <= TABLES.start, "room for the rings");
        let queues = self.rings.iter().zip(&identity.queue_sizes).zip(0..);
        let memory = Arc::clone(&self.memory.memory);
        let queues = queues.map(|((ring, &max), index)| {
            let queue = ring.queue(max, setup.event_idx);
            VirtQueue::new(index, queue, Arc::clone(&memory), Arc::clone(&self.interrupt))
        });
        let queues = queues.collect();
        let features = setup.features & identity.features;
        self.active = self.subject.device().activate(features, queues).is_ok();
        if !self.active {
            return;
        }
        for (index, fd) in (0..).zip(self.sources()) {
            let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
            self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, index)).expect("a source");
        }
        (0..self.rings.len()).for_each(|queue| self.wake(Wake::Queue(queue as u16)));
        (0..self.sources().len()).for_each(|source| self.wake(Wake::Source(source)));
    }

    /// What the event loop does at a reset.
    fn stop(&mut self) {
        for fd in self.sources() {
            // Not there where the device was never started.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        self.subject.device().reset();
        self.active = false;
        self.check();
        self.offered.clear();
    }

    fn sources(&mut self) -> Vec<RawFd> {
        self.subject.device().sources()
    }

    fn step<M: Message>(&mut self, step: Step<M, S::Act>, setup: &mut Setup) {
        if !self.active && matches!(step, Step::Offer { .. }) {
            self.stop();
            self.start(setup);
        }
        match step {
            Step::Offer { queue, message, cuts, room, knob, kick } => {
                let message = message.0.map_or(Vec::new(), |message| message.bytes());
                let queue = self.offer(queue, &message, &cuts, &room, knob);
                if kick {
                    self.wake(Wake::Queue(queue));
                }
            }
            Step::Repeat { queue, times } => {
                let queue = self.ring(queue);
                for _ in 0..u16::from(times) % (self.rings[queue].size + 2) {
                    let head = self.rings[queue].last_head;
                    self.make_available(queue, head);
                }
            }
            Step::Kick(queue) => {
                let queue = self.ring(queue);
                self.wake(Wake::Queue(queue as u16));
            }
            Step::Source(source) => {
                let count = self.sources().len();
                self.wake(Wake::Source(usize::from(source) % count));
            }
            Step::Act(act) => {
                self.subject.act(act);
                self.turn();
            }
            Step::Settle => self.settle(),
            Step::Reset(new) => {
                self.stop();
                if let Some(new) = new.0 {
                    *setup = new;
                }
                self.start(setup);
            }
            Step::Wish { queue, flags, event } => {
                let ring = &self.rings[self.ring(queue)];
                let (available, size) = (ring.available, ring.size);
                self.memory.write(available, &flags.to_le_bytes());
                self.memory.write(available + 4 + 2 * u64::from(size), &event.to_le_bytes());
            }
            Step::Jump { queue, by } => {
                let queue = self.ring(queue);
                if let Some(by) = by.0 {
                    self.rings[queue].count = None;
                    self.rings[queue].next_available = self.rings[queue].next_available.wrapping_add(by);
                    self.tell_available(queue);
                }
            }
            Step::Poke { at, value } => {
                // What descriptors say is then unknown.
                self.wild |= u64::from(at) < BUFFERS.start;
                self.memory.write(at.into(), &value.to_le_bytes());
            }
        }
    }

    fn ring(&self, queue: u8) -> usize {
        usize::from(queue) % self.rings.len()
    }

    fn wake(&mut self, wake: Wake) {
        if self.active {
            self.active = self.subject.device().wake(wake).is_ok();
            self.check();
        }
    }

    /// One turn of the event loop. False: nothing had happened.
    fn turn(&mut self) -> bool {
        let mut events = [EpollEvent::default(); 8];
        let count = self.epoll.wait(0, &mut events).expect("sources to wait for");
        for event in &events[..count] {
            self.wake(Wake::Source(event.data() as usize));
        }
        count > 0 && self.active
    }

    fn settle(&mut self) {
        (0..self.rings.len()).for_each(|queue| self.wake(Wake::Queue(queue as u16)));
        let calm = (0..SETTLE_WAKES_MAX).any(|_| !self.turn());
        assert!(calm || self.wild, "the device never rests");
    }

    fn check(&mut self) {
        self.subject.after_wake();
        let changes = self.memory.changes();
        if self.wild {
            return;
        }
        for at in changes {
            let allowed = self.rings.iter().any(|ring| ring.ready && ring.used_range().contains(&at))
                || self.offered.iter().any(|range| range.contains(&at));
            assert!(allowed, "the device has written at {at:#x}, which was not offered");
        }
        for ring in self.rings.iter_mut().filter(|ring| ring.ready) {
            let used = self.memory.read_u16(ring.used + 2);
            ring.used_count += u64::from(used.wrapping_sub(ring.used_seen));
            ring.used_seen = used;
            if let Some(count) = ring.count {
                assert!(ring.used_count <= count, "{} chains came back of {count}", ring.used_count);
            }
        }
    }

    /// Offers a chain. Returns the queue's number.
    fn offer(&mut self, queue: u8, message: &[u8], cuts: &[u8], room: &[Room], knob: Knob) -> u16 {
        let queue = self.ring(queue);
        let mut pieces = self.readable(message, cuts);
        let written = room.iter().take(ROOMS_MAX).map(|room| {
            let len = room.len();
            Piece { address: allocate(&mut self.free, len, BUFFERS), len, flags: WRITE, next: 0 }
        });
        pieces.extend(written.collect::<Vec<_>>());
        if matches!(knob, Knob::Backwards) {
            pieces.reverse();
        }
        let head = self.lay_out(queue, pieces, knob);
        self.rings[queue].last_head = head;
        self.make_available(queue, head);
        queue as u16
    }

    fn readable(&mut self, message: &[u8], cuts: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut rest = message;
        let mut cuts = cuts.iter();
        while !rest.is_empty() {
            let len = cuts.next().map_or(rest.len(), |&cut| usize::from(cut).min(rest.len()));
            let (piece, after) = rest.split_at(len);
            let address = allocate(&mut self.free, len as u32, BUFFERS);
            self.memory.write(address, piece);
            pieces.push(Piece { address, len: len as u32, flags: 0, next: 0 });
            rest = after;
            if pieces.len() >= ROOMS_MAX {
                break;
            }
        }
        pieces
    }

    /// Writes the descriptors. Returns the head.
    fn lay_out(&mut self, queue: usize, mut pieces: Vec<Piece>, knob: Knob) -> u16 {
        let indirect =
            matches!(knob, Knob::Indirect | Knob::TableLength(_) | Knob::TableAt(_) | Knob::TableOfOne);
        let size = self.rings[queue].size;
        if !indirect {
            pieces.truncate(size.into());
        }
        let first = if indirect { 0 } else { self.rings[queue].next_descriptor };
        let modulus = if indirect { u16::MAX } else { size };
        let count = pieces.len();
        for (index, piece) in (1_u16..).zip(&mut pieces) {
            piece.next = first.wrapping_add(index) % modulus;
            piece.flags |= if usize::from(index) < count { NEXT } else { 0 };
        }
        spoil(&mut pieces, knob);
        self.note_offered(&pieces);
        let table: Vec<u8> = pieces.iter().flat_map(Piece::bytes).collect();
        let (head, at) = if indirect {
            let mut at = allocate(&mut self.free_table, table.len() as u32, TABLES);
            self.memory.write(at, &table);
            let mut len = table.len() as u32;
            match knob {
                Knob::TableAt(address) => at = address.number(),
                Knob::TableLength(other) => len = other,
                Knob::TableOfOne => len = u32::from(u16::MAX) * 16,
                _ => {}
            }
            // What lies behind the pieces is read as descriptors too.
            self.wild |= len as usize > table.len() || !matches!(knob, Knob::Indirect);
            let head = self.rings[queue].next_descriptor;
            self.rings[queue].next_descriptor = (head + 1) % size;
            let descriptor = Piece { address: at, len, flags: INDIRECT, next: 0 };
            (head, vec![(head, descriptor)])
        } else {
            self.rings[queue].next_descriptor = (first + count as u16) % size;
            let indices = (0..count as u16).map(|index| (first + index) % size);
            (first, indices.zip(pieces).collect())
        };
        for (index, piece) in at {
            let address = self.rings[queue].descriptors + 16 * u64::from(index);
            self.memory.write(address, &piece.bytes());
        }
        if let Knob::Head(head) = knob { head } else { head }
    }

    fn note_offered(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            if piece.flags & INDIRECT != 0 {
                self.wild = true;
            }
            if piece.flags & WRITE != 0 {
                let range = piece.address..piece.address.saturating_add(piece.len.into());
                // Into rings, or tables and messages that lie among the buffers.
                self.wild |= piece.is_spoilt();
                self.offered.push(range);
            }
        }
    }

    fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let at = ring.available + 4 + 2 * u64::from(ring.next_available % ring.size);
        ring.next_available = ring.next_available.wrapping_add(1);
        ring.count = ring.count.map(|count| count + 1);
        self.memory.write(at, &head.to_le_bytes());
        self.tell_available(queue);
    }

    fn tell_available(&mut self, queue: usize) {
        let (at, index) = (self.rings[queue].available + 2, self.rings[queue].next_available);
        self.memory.write(at, &index.to_le_bytes());
    }
}

/// A descriptor.
#[derive(Clone, Copy)]
struct Piece {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Piece {
    fn bytes(&self) -> Vec<u8> {
        let Self { address, len, flags, next } = self;
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes
    }

    /// Whether it was not made by [`allocate`], which keeps clear of everything else.
    fn is_spoilt(&self) -> bool {
        self.address < BUFFERS.start || self.address.saturating_add(self.len.into()) > BUFFERS.end
    }
}

fn spoil(pieces: &mut [Piece], knob: Knob) {
    if let Knob::TableOfOne = knob {
        pieces.iter_mut().for_each(|piece| (piece.next, piece.flags) = (0, piece.flags | NEXT));
    }
    let (Knob::Address { which, .. }
    | Knob::Length { which, .. }
    | Knob::Next { which, .. }
    | Knob::Flags { which, .. }) = knob
    else {
        return;
    };
    let count = pieces.len().max(1);
    let Some(piece) = pieces.get_mut(usize::from(which) % count) else { return };
    match knob {
        Knob::Address { address, .. } => piece.address = address.number(),
        Knob::Length { len, .. } => piece.len = len,
        Knob::Next { next, .. } => (piece.next, piece.flags) = (next, piece.flags | NEXT),
        Knob::Flags { flags, .. } => piece.flags = flags,
        _ => {}
    }
}

/// The next place for a buffer, in a circle.
fn allocate(free: &mut u64, len: u32, within: Range<u64>) -> u64 {
    if *free + u64::from(len) > within.end {
        *free = within.start;
    }
    let at = *free;
    *free = (at + u64::from(len)).next_multiple_of(16);
    at
}

impl Ring {
    fn new(at: &mut u64, index: usize, max: u16, setup: &Setup) -> Self {
        let size = match &setup.sizes.0 {
            Some(sizes) => 1 << (u32::from(sizes[index % 3]) % (max.ilog2() + 1)),
            None => max.min(SIZE_USUAL),
        };
        let left_out = setup.left_out.0.unwrap_or(0) >> (index % 8) & 1 != 0;
        let descriptors = at.next_multiple_of(16);
        let mut available = descriptors + 16 * u64::from(size);
        let mut used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        *at = used + 6 + 8 * u64::from(size);
        match setup.overlap.0 {
            Some(Overlap::UsedOnAvailable(by)) => used = (available + u64::from(by)) & !3,
            Some(Overlap::UsedOnDescriptors(by)) => used = descriptors + u64::from(by & !3),
            Some(Overlap::AvailableOnDescriptors(by)) => available = descriptors + u64::from(by & !1),
            None => {}
        }
        Self {
            size,
            ready: !left_out,
            descriptors,
            available,
            used,
            next_descriptor: 0,
            next_available: 0,
            count: Some(0),
            used_seen: 0,
            used_count: 0,
            last_head: 0,
        }
    }

    fn queue(&self, max: u16, event_idx: bool) -> Queue {
        let mut queue = Queue::new(max).expect("a power of two");
        if self.ready {
            queue.try_set_size(self.size).expect("a power of two");
            queue.try_set_desc_table_address(GuestAddress(self.descriptors)).expect("aligned");
            queue.try_set_avail_ring_address(GuestAddress(self.available)).expect("aligned");
            queue.try_set_used_ring_address(GuestAddress(self.used)).expect("aligned");
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
        }
        queue
    }

    fn used_range(&self) -> Range<u64> {
        self.used..self.used + 6 + 8 * u64::from(self.size)
    }
}

/// Rings from here on.
const RINGS_AT: u64 = 0x1000;
/// Indirect tables.
const TABLES: Range<u64> = 0x6000..0x8000;
/// Buffers and messages, up to the end of the second region.
const BUFFERS: Range<u64> = 0x8000..0x1_4000;
/// So that small scripts reach the end of a ring.
const SIZE_USUAL: u16 = 16;
const ROOMS_MAX: usize = 300;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A limiter that limits nothing: what passes is up to the device.
pub fn unlimited() -> RateLimiter {
    RateLimiter::new(RateLimit::default(), FakeTime::new().timer())
}
