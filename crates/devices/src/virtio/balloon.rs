//! virtio-balloon (virtio 1.2 section 5.5): the guest gives memory back to the host, when it is asked
//! to (inflate) and by itself what it has no use for (free page reporting).
//!
//! Invariant: nothing but guest memory is ever discarded, and a page only between the guest's giving
//! it and the device's thanks for it.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{
    Again, ConfigSpace, GuestFault, Identity, Position, VirtQueue, VirtioDevice, Wake, queue::Chain,
};
use crate::Memory;

/// Gives guest memory back to the host.
pub trait Reclaim: Send {
    /// The guest has no use for what is in this range, a multiple of 4 KiB inside of one memory region.
    /// It reads as zeros or as before when the guest next touches it.
    ///
    /// # Errors
    /// The host cannot; the memory stays taken.
    fn discard(&self, address: GuestAddress, len: u64) -> io::Result<()>;
}

/// The device.
pub struct Balloon<R> {
    reclaimer: Reclaimer<R>,
    shared: Arc<Shared>,
    state: State,
}

/// All that a reset clears.
#[derive(Default)]
struct State {
    queues: Vec<(Role, VirtQueue)>,
    /// The buffer in which the driver answers the next request for statistics.
    statistics_head: Option<u16>,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
    Unused,
}

/// What the host wants of the guest, and knows of it. Any thread may use it.
#[derive(Clone)]
pub struct BalloonHandle {
    shared: Arc<Shared>,
}

struct Shared {
    again: Again,
    config: Arc<ConfigSpace>,
    /// The target has changed and the driver has not been told.
    target_changed: AtomicBool,
    statistics_wanted: AtomicBool,
    statistics: Mutex<Vec<(&'static str, u64)>>,
}

impl BalloonHandle {
    /// The guest shall give this many bytes back, in pages of 4 KiB, and take what is beyond again. It
    /// does so in its own time, or not at all. The target outlives a reset of the guest.
    pub fn set_target_bytes(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.shared.config.update(|config| put(config, NUM_PAGES, pages));
        self.shared.target_changed.store(true, Ordering::Release);
        self.shared.again.call();
    }

    /// What the guest shall give back.
    pub fn target_bytes(&self) -> u64 {
        u64::from(get(&self.shared.config, NUM_PAGES)) * PAGE
    }

    /// What the guest says that it has given back.
    pub fn actual_bytes(&self) -> u64 {
        u64::from(get(&self.shared.config, ACTUAL)) * PAGE
    }

    /// Asks the guest for fresh [`Self::statistics`].
    pub fn request_statistics(&self) {
        self.shared.statistics_wanted.store(true, Ordering::Release);
        self.shared.again.call();
    }

    /// What the guest last said of its memory: counters by name. Empty until it has.
    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<R: Reclaim> Balloon<R> {
    /// An empty balloon, waiting for its driver.
    ///
    /// # Errors
    /// The host is out of descriptors or memory.
    pub fn new(reclaim: R) -> io::Result<Self> {
        let shared = Shared {
            again: Again::new()?,
            config: Arc::new(ConfigSpace::new(vec![0; 8], vec![0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])),
            target_changed: AtomicBool::new(false),
            statistics_wanted: AtomicBool::new(false),
            statistics: Mutex::default(),
        };
        let reclaimer = Reclaimer { reclaim, pages: Vec::new(), counters: Counters::default() };
        Ok(Self { reclaimer, shared: Arc::new(shared), state: State::default() })
    }

    /// The host's side.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle { shared: Arc::clone(&self.shared) }
    }

    fn serve(&mut self, index: usize) -> Result<(), GuestFault> {
        let Self { reclaimer, shared, state } = self;
        let Some((role, queue)) = state.queues.get_mut(index) else { return Ok(()) };
        match role {
            Role::Inflate => shared.again.serve(queue, |chain| reclaimer.inflate(&chain)),
            Role::Deflate => shared.again.serve(queue, |chain| {
                reclaimer.counters.deflated_pages += readable_len(&chain) / 4;
                Ok(0)
            }),
            Role::Reporting => shared.again.serve(queue, |chain| reclaimer.report(&chain)),
            Role::Statistics => serve_statistics(queue, &mut state.statistics_head, shared),
            Role::Unused => Ok(()),
        }
    }

    /// The host has called, or there was more to do than one turn allows.
    fn called(&mut self) -> Result<(), GuestFault> {
        if let Some((_, queue)) = self.state.queues.first()
            && self.shared.target_changed.swap(false, Ordering::AcqRel)
        {
            queue.interrupt().config_changed();
        }
        (0..self.state.queues.len()).try_for_each(|index| self.serve(index))
    }
}

/// The driver has put a buffer of statistics into the queue; it gets it back when the host wants fresh
/// ones (virtio 1.2 section 5.5.6.3).
fn serve_statistics(
    queue: &mut VirtQueue,
    held: &mut Option<u16>,
    shared: &Shared,
) -> Result<(), GuestFault> {
    for _ in 0..queue.size() {
        let Some(chain) = queue.pop()? else {
            if queue.is_ready() && queue.enable_kicks()? {
                continue;
            }
            break;
        };
        let fresh = read_statistics(&chain);
        *shared.statistics.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        // A driver has one such buffer; one that gives more gets the older ones back.
        if let Some(older) = held.replace(chain.head_index()) {
            queue.complete(older, 0)?;
        }
    }
    if held.is_some()
        && shared.statistics_wanted.swap(false, Ordering::AcqRel)
        && let Some(head) = held.take()
    {
        queue.complete(head, 0)?;
    }
    queue.notify()
}

fn read_statistics(chain: &Chain) -> Vec<(&'static str, u64)> {
    let mut statistics = Vec::new();
    for descriptor in chain.clone().readable().take(NAMES.len()) {
        for at in (0..descriptor.len().min(STATISTICS_BYTES_MAX)).step_by(STATISTIC_LEN) {
            let mut entry = [0; STATISTIC_LEN];
            let whole = at as usize + STATISTIC_LEN <= descriptor.len() as usize;
            let address = descriptor.addr().checked_add(at.into()).filter(|_| whole);
            let Some(address) = address else { break };
            if chain.memory().read_slice(&mut entry, address).is_err() {
                break;
            }
            let [a, b, value @ ..] = entry;
            let name = NAMES.get(usize::from(u16::from_le_bytes([a, b])));
            statistics.extend(name.map(|name| (*name, u64::from_le_bytes(value))));
        }
        if statistics.len() >= NAMES.len() {
            break;
        }
    }
    statistics
}

fn readable_len(chain: &Chain) -> u64 {
    chain.clone().readable().map(|descriptor| u64::from(descriptor.len())).sum()
}

/// Takes what the guest gives.
struct Reclaimer<R> {
    reclaim: R,
    /// Page numbers of one chain; kept for its memory.
    pages: Vec<u32>,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    inflated_pages: u64,
    deflated_pages: u64,
    reported_bytes: u64,
    discarded_bytes: u64,
    /// Ranges that are not memory.
    refused: u64,
    errors: u64,
}

impl<R: Reclaim> Reclaimer<R> {
    /// A chain of page numbers, 32 bits each. Neighbours are discarded together.
    fn inflate(&mut self, chain: &Chain) -> Result<u32, GuestFault> {
        self.read_pages(chain)?;
        self.counters.inflated_pages += self.pages.len() as u64;
        let mut pages = std::mem::take(&mut self.pages);
        pages.sort_unstable();
        let mut run = 0..0;
        for page in pages.iter().map(|&page| u64::from(page) * PAGE) {
            if page == run.end && !run.is_empty() {
                run.end += PAGE;
            } else if !run.contains(&page) {
                self.discard(chain.memory(), run.start, run.end);
                run = page..page + PAGE;
            }
        }
        self.discard(chain.memory(), run.start, run.end);
        self.pages = pages;
        Ok(0)
    }

    fn read_pages(&mut self, chain: &Chain) -> Result<(), GuestFault> {
        self.pages.clear();
        let mut scratch = [0; 1024];
        for descriptor in chain.clone().readable() {
            let room = PAGES_MAX.saturating_sub(self.pages.len());
            let mut left = (descriptor.len() as usize / 4).min(room) * 4;
            let mut address = descriptor.addr();
            while left > 0 {
                let outside = GuestFault::Request("balloon page numbers outside of memory");
                let len = left.min(scratch.len());
                let Some(bytes) = scratch.get_mut(..len) else { break };
                if chain.memory().read_slice(bytes, address).is_err() {
                    return Err(outside);
                }
                let (numbers, _) = bytes.as_chunks();
                self.pages.extend(numbers.iter().map(|&number| u32::from_le_bytes(number)));
                address = address.checked_add(len as u64).ok_or(outside)?;
                left -= len;
            }
        }
        Ok(())
    }

    /// A chain of free ranges.
    fn report(&mut self, chain: &Chain) -> Result<u32, GuestFault> {
        for descriptor in chain.clone().writable().take(RANGES_MAX) {
            let start = descriptor.addr().0;
            let Some(end) = start.checked_add(descriptor.len().into()) else {
                return Err(GuestFault::Request("free page range outside of memory"));
            };
            self.counters.reported_bytes += u64::from(descriptor.len());
            // Whole pages only: what is left of the first and last is not all free.
            let Some(start) = start.checked_next_multiple_of(PAGE) else { continue };
            self.discard(chain.memory(), start, end / PAGE * PAGE);
        }
        Ok(0)
    }

    /// Discards what of the range is memory.
    fn discard(&mut self, memory: &Memory, start: u64, end: u64) {
        let mut left = end.saturating_sub(start);
        for region in memory.iter() {
            let from = start.max(region.start_addr().0);
            let to = end.min(region.start_addr().0.saturating_add(region.len()));
            if from >= to {
                continue;
            }
            left -= to - from;
            match self.reclaim.discard(GuestAddress(from), to - from) {
                Ok(()) => self.counters.discarded_bytes += to - from,
                Err(error) => {
                    if self.counters.errors == 0 {
                        log::error!(
                            "cannot give {} bytes of guest memory at {from:#x} back: {error}",
                            to - from
                        );
                    }
                    self.counters.errors += 1;
                }
            }
        }
        self.counters.refused += u64::from(left != 0);
    }
}

impl<R: Reclaim> VirtioDevice for Balloon<R> {
    fn identity(&self) -> Identity {
        Identity {
            device_type: DEVICE_TYPE,
            // Memory controller, other: what QEMU says.
            pci_class: 0x05_80_00,
            features: STATISTICS | DEFLATE_ON_OOM | REPORTING,
            queue_sizes: vec![QUEUE_SIZE; 5],
            config: Arc::clone(&self.shared.config),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.shared.again.as_raw_fd()]
    }

    /// Queue 3 is for hints of free pages, which are not offered, and queue 4 for reports
    /// (virtio 1.2 section 5.5.2). Most versions of Linux leave queues of absent features out when they
    /// count, so that their reports come in queue 3.
    fn activate(&mut self, features: u64, queues: Vec<VirtQueue>) -> Result<(), GuestFault> {
        let statistics = features & STATISTICS != 0;
        let reporting = if features & REPORTING != 0 { Role::Reporting } else { Role::Unused };
        let role = |index| match index {
            0 => Role::Inflate,
            1 => Role::Deflate,
            2 if statistics => Role::Statistics,
            _ => reporting,
        };
        self.state.queues = queues.into_iter().map(|queue| (role(queue.index()), queue)).collect();
        Ok(())
    }

    fn wake(&mut self, wake: Wake) -> Result<(), GuestFault> {
        match wake {
            Wake::Queue(index) => self.serve(index.into()),
            Wake::Source(_) => self.called(),
        }
    }

    fn reset(&mut self) {
        let Self { reclaimer: _, shared, state } = self;
        *state = State::default();
        // What it had given back it now owns again; the host still wants what it wanted.
        shared.config.update(|config| put(config, ACTUAL, 0));
        shared.target_changed.store(false, Ordering::Release);
        shared.statistics.lock().unwrap_or_else(PoisonError::into_inner).clear();
        shared.again.clear();
    }

    fn positions(&self) -> Vec<Position> {
        let State { queues, statistics_head } = &self.state;
        let held = |role| u16::from(role == Role::Statistics && statistics_head.is_some());
        queues.iter().map(|(role, queue)| queue.position(held(*role))).collect()
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        let Counters { inflated_pages, deflated_pages, reported_bytes, discarded_bytes, refused, errors } =
            self.reclaimer.counters;
        let mut metrics = vec![
            ("inflated_pages", inflated_pages),
            ("deflated_pages", deflated_pages),
            ("reported_bytes", reported_bytes),
            ("discarded_bytes", discarded_bytes),
            ("refused", refused),
            ("errors", errors),
        ];
        let handle = self.handle();
        metrics.extend(handle.statistics());
        // Whoever asks again then reads what was true at this time, not at the driver's start.
        handle.request_statistics();
        metrics
    }
}

fn get(config: &ConfigSpace, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    config.read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn put(config: &mut [u8], offset: usize, value: u32) {
    config.iter_mut().skip(offset).zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
}

const DEVICE_TYPE: u32 = 5;
const QUEUE_SIZE: u16 = 128;

// Features.
const STATISTICS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const REPORTING: u64 = 1 << 5;

/// The balloon's unit, whatever the guest's page size is.
const PAGE: u64 = 4096;
/// Page numbers taken from one chain; what is beyond is not discarded. Linux sends 256, Windows 1,024. Each
/// can cost a system call, and a wake takes as many chains as the queue holds.
const PAGES_MAX: usize = 1024;
/// Ranges taken from one chain; what is beyond is not discarded. Linux sends 32.
const RANGES_MAX: usize = 1024;

// Configuration.
const NUM_PAGES: usize = 0;
const ACTUAL: usize = 4;

/// A tag of 16 bits and a value of 64.
const STATISTIC_LEN: usize = 10;
const STATISTICS_BYTES_MAX: u32 = 640;
/// By tag (virtio 1.2 section 5.5.6.4).
const NAMES: [&str; 10] = [
    "guest_swapped_in_bytes",
    "guest_swapped_out_bytes",
    "guest_major_faults",
    "guest_minor_faults",
    "guest_free_bytes",
    "guest_total_bytes",
    "guest_available_bytes",
    "guest_cache_bytes",
    "guest_hugetlb_allocations",
    "guest_hugetlb_failures",
];

#[cfg(test)]
mod tests;
