//! The driver's side of a virtqueue, for tests: guest memory with rings in it, chains to add, and
//! what has come back.
//!
//! ```ignore
//! let mut guest = Guest::new(&[256, 256]);            // two queues
//! device.activate(features, guest.queues())?;
//! let out = guest.buffer(b"hello");                   // readable by the device
//! let room = guest.room(512);                         // writable by the device
//! let head = guest.ring(0).add(&[out, room]);
//! device.wake(Wake::Queue(0))?;
//! assert_eq!(guest.ring(0).used(), [(head, 512)]);
//! assert_eq!(guest.interrupts.of_queue(0), 1);
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests only"
)]

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Interrupt, Position, VirtQueue};
use crate::{
    Memory,
    time::{Clock, Timer},
};

/// Guest memory, the rings in it, and the interrupts that came.
pub struct Guest {
    /// All of it, from address 0.
    pub memory: Arc<Memory>,
    /// What the device raised.
    pub interrupts: Arc<Interrupts>,
    rings: Vec<Ring>,
    free: u64,
}

impl Guest {
    /// 16 MiB of memory, and a queue of each size.
    pub fn new(sizes: &[u16]) -> Self {
        Self::with_memory(sizes, &[(0, 16 << 20)])
    }

    /// Memory of these regions (address and length, the first from 0 and at least 1 MiB), and a queue
    /// of each size.
    pub fn with_memory(sizes: &[u16], regions: &[(u64, usize)]) -> Self {
        let regions: Vec<_> = regions.iter().map(|&(start, len)| (GuestAddress(start), len)).collect();
        let memory = Arc::new(Memory::from_ranges(&regions).expect("guest memory"));
        let mut free = 0x1000;
        let rings = sizes
            .iter()
            .map(|&size| {
                let ring = Ring::new(Arc::clone(&memory), free, size);
                free = ring.end().next_multiple_of(0x1000);
                ring
            })
            .collect();
        let interrupts = Arc::new(Interrupts::new(sizes.len()));
        Self { memory, interrupts, rings, free }
    }

    /// All queues, ready, as the transport hands them to a device.
    pub fn queues(&self) -> Vec<VirtQueue> {
        (0u16..).zip(&self.rings).map(|(index, ring)| self.wrap(index, ring.queue())).collect()
    }

    /// All queues, ready, as after a snapshot that was taken there.
    pub fn queues_at(&self, positions: &[Position]) -> Vec<VirtQueue> {
        let queue = |((index, ring), position): ((u16, &Ring), &Position)| {
            let mut queue = ring.queue();
            queue.set_next_avail(position.next_available);
            queue.set_next_used(position.next_used);
            self.wrap(index, queue)
        };
        (0u16..).zip(&self.rings).zip(positions).map(queue).collect()
    }

    /// The queues of these numbers ready, the others not.
    pub fn queues_ready(&self, ready: &[u16]) -> Vec<VirtQueue> {
        let queue = |(index, ring): (u16, &Ring)| {
            let queue = if ready.contains(&index) { ring.queue() } else { Queue::new(ring.size).unwrap() };
            self.wrap(index, queue)
        };
        (0u16..).zip(&self.rings).map(queue).collect()
    }

    fn wrap(&self, index: u16, queue: Queue) -> VirtQueue {
        let interrupt = Arc::clone(&self.interrupts) as Arc<dyn Interrupt>;
        VirtQueue::new(index, queue, Arc::clone(&self.memory), interrupt)
    }

    /// The driver's side of a queue.
    pub fn ring(&mut self, index: usize) -> &mut Ring {
        &mut self.rings[index]
    }

    /// An address at which `len` bytes are free, 16-byte aligned.
    pub fn allocate(&mut self, len: usize) -> u64 {
        let address = self.free.next_multiple_of(16);
        self.free = address + len as u64;
        address
    }

    /// A buffer with these bytes, for the device to read.
    pub fn buffer(&mut self, bytes: &[u8]) -> Buffer {
        let address = self.allocate(bytes.len());
        self.memory.write_slice(bytes, GuestAddress(address)).expect("room in guest memory");
        Buffer::readable(address, bytes.len() as u32)
    }

    /// A buffer of `len` bytes, for the device to write.
    pub fn room(&mut self, len: u32) -> Buffer {
        Buffer::writable(self.allocate(len as usize), len)
    }

    /// What lies in a buffer now.
    pub fn bytes(&self, buffer: Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(buffer.address)).expect("inside of guest memory");
        bytes
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Where in guest memory.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it; else it reads it.
    pub writable: bool,
}

impl Buffer {
    /// For the device to read.
    pub fn readable(address: u64, len: u32) -> Self {
        Self { address, len, writable: false }
    }

    /// For the device to write.
    pub fn writable(address: u64, len: u32) -> Self {
        Self { address, len, writable: true }
    }
}

/// The driver's side of one split virtqueue (virtio 1.2 section 2.7).
pub struct Ring {
    memory: Arc<Memory>,
    /// Descriptors.
    pub size: u16,
    /// Where the descriptor table lies.
    pub descriptors: u64,
    /// Where the available ring lies.
    pub available: u64,
    /// Where the used ring lies.
    pub used: u64,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
}

impl Ring {
    /// A queue whose parts lie one after the other from `base`, a multiple of 16.
    pub fn new(memory: Arc<Memory>, base: u64, size: u16) -> Self {
        let available = base + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Self {
            memory,
            size,
            descriptors: base,
            available,
            used,
            next_descriptor: 0,
            next_available: 0,
            next_used: 0,
        }
    }

    /// The first address behind it.
    pub fn end(&self) -> u64 {
        self.used + 6 + 8 * u64::from(self.size)
    }

    /// The device's side, ready, from the start.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).expect("a power of two");
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.available)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used)).unwrap();
        queue.set_ready(true);
        queue
    }

    /// Adds a chain of these buffers and makes it available. Returns its head. Descriptors are used in
    /// a circle, without looking whether the device still has them.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (i, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = u16::from(i + 1 < buffers.len());
            let flags = more | u16::from(buffer.writable) << 1;
            self.write_descriptor(index, buffer.address, buffer.len, flags, self.next_descriptor);
        }
        self.make_available(head);
        head
    }

    /// Writes one descriptor, whatever it means: flag 1 is next, 2 writable, 4 indirect.
    pub fn write_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.descriptors + 16 * u64::from(index));
        let mut bytes = Vec::with_capacity(16);
        bytes.extend(address.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, at).expect("ring in guest memory");
    }

    /// Puts `head` into the available ring, whatever it is.
    pub fn make_available(&mut self, head: u16) {
        let slot = self.available + 4 + 2 * u64::from(self.next_available % self.size);
        self.memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available_index(self.next_available);
    }

    /// Sets the available ring's index, whatever it is.
    pub fn set_available_index(&self, index: u16) {
        self.memory.store(index.to_le(), GuestAddress(self.available + 2), Ordering::Release).unwrap();
    }

    /// The chains that the device has given back since the last call: head and bytes written.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let index: u16 = self.memory.load(GuestAddress(self.used + 2), Ordering::Acquire).unwrap();
        let mut chains = Vec::new();
        while self.next_used != u16::from_le(index) {
            let at = GuestAddress(self.used + 4 + 8 * u64::from(self.next_used % self.size));
            let [head, len]: [u32; 2] = self.memory.read_obj(at).unwrap();
            chains.push((u32::from_le(head) as u16, u32::from_le(len)));
            self.next_used = self.next_used.wrapping_add(1);
        }
        chains
    }
}

/// Counts what a device raises.
pub struct Interrupts {
    queues: Vec<AtomicU64>,
    config: AtomicU64,
}

impl Interrupts {
    /// For a device of so many queues.
    pub fn new(queues: usize) -> Self {
        Self { queues: (0..queues).map(|_| AtomicU64::new(0)).collect(), config: AtomicU64::new(0) }
    }

    /// How often the device said that it used buffers of this queue.
    pub fn of_queue(&self, queue: usize) -> u64 {
        self.queues[queue].load(Ordering::SeqCst)
    }

    /// How often the device said that its configuration changed.
    pub fn of_config(&self) -> u64 {
        self.config.load(Ordering::SeqCst)
    }
}

impl Interrupt for Interrupts {
    fn used(&self, queue: u16) {
        self.queues[usize::from(queue)].fetch_add(1, Ordering::SeqCst);
    }

    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

/// Time that stands still until the test lets it pass. Clones are the same time.
#[derive(Clone, Debug)]
pub struct FakeTime(Arc<Mutex<Times>>);

#[derive(Debug, Default)]
struct Times {
    now_ns: u64,
    alarm_ns: Option<u64>,
}

/// What a device is given of a [`FakeTime`]. It never becomes ready: the test wakes the device itself.
struct FakeTimer {
    time: FakeTime,
    never: EventFd,
}

impl FakeTime {
    /// The beginning.
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// For a device.
    pub fn timer(&self) -> Box<dyn Timer> {
        Box::new(FakeTimer { time: self.clone(), never: EventFd::new(EFD_NONBLOCK).unwrap() })
    }

    /// For a device that only looks.
    pub fn clock(&self) -> Box<dyn Clock> {
        self.timer()
    }

    /// When the last alarm that was set rings, after now; none if none is set.
    pub fn alarm_ns(&self) -> Option<u64> {
        let times = self.0.lock().unwrap();
        times.alarm_ns.map(|at| at.saturating_sub(times.now_ns))
    }

    /// Lets time pass.
    pub fn pass_ns(&self, ns: u64) {
        self.0.lock().unwrap().now_ns += ns;
    }

    /// Lets time pass until the alarm, which must be set.
    pub fn pass_to_alarm(&self) {
        let mut times = self.0.lock().unwrap();
        times.now_ns = times.now_ns.max(times.alarm_ns.take().expect("an alarm"));
    }

    /// Nanoseconds since the beginning.
    pub fn now_ns(&self) -> u64 {
        self.0.lock().unwrap().now_ns
    }

    /// Whole milliseconds since the beginning.
    pub fn now_ms(&self) -> u64 {
        self.now_ns() / 1_000_000
    }
}

impl Default for FakeTime {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for FakeTimer {
    fn now_ns(&self) -> u64 {
        self.time.now_ns()
    }
}

impl Timer for FakeTimer {
    fn wake_after(&mut self, time: Duration) {
        let mut times = self.time.0.lock().unwrap();
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        times.alarm_ns = Some(times.now_ns.saturating_add(ns));
    }

    fn descriptor(&self) -> RawFd {
        self.never.as_raw_fd()
    }
}
