//! virtio-balloon (virtio 1.2 section 5.5): the guest gives memory back to the host, when it is asked
//! to (inflate) and by itself what it has no use for (free page reporting).
//!
//! Invariant: nothing but guest memory is ever discarded, and a page only between the guest's giving
//! it and the device's thanks for it.

use std::{
    cell::Cell,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{
    Again, BalloonState, CommandError, ConfigSpace, DeviceAnswer, DeviceCommand, GuestFault, Identity,
    Position, VirtQueue, VirtioDevice, Wake, again::Served, queue::Chain,
};
use crate::{Memory, time::Clock};

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
    options: Options,
    clock: Box<dyn Clock>,
    config: Arc<ConfigSpace>,
    again: Again,
    /// The host wants fresh statistics. Set also by whoever reads the last ones.
    statistics_wanted: Cell<bool>,
    state: State,
}

/// What the guest may and can do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How much memory the guest has: it cannot be asked for more.
    pub memory_bytes: u64,
    /// The guest takes memory back before it kills a process for want of it.
    pub deflate_on_oom: bool,
    /// The guest tells of what it has freed.
    pub free_page_reporting: bool,
}

/// All that a reset clears. The target is the host's, and stays.
#[derive(Default)]
struct State {
    queues: Vec<(Role, VirtQueue)>,
    /// The buffer in which the driver answers the next request for statistics.
    statistics_head: Option<u16>,
    statistics: Statistics,
}

/// What the guest last said of its memory.
#[derive(Default)]
struct Statistics {
    values: Vec<(&'static str, u64)>,
    count: u64,
    at_ns: u64,
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

impl<R: Reclaim> Balloon<R> {
    /// An empty balloon, waiting for its driver. `clock` tells how old statistics are.
    ///
    /// # Errors
    /// The host is out of descriptors or memory.
    pub fn new(reclaim: R, options: Options, clock: Box<dyn Clock>) -> io::Result<Self> {
        Ok(Self {
            reclaimer: Reclaimer { reclaim, pages: Vec::new(), asked: 0, counters: Counters::default() },
            options,
            clock,
            config: Arc::new(ConfigSpace::new(vec![0; 8], vec![0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])),
            again: Again::new()?,
            statistics_wanted: Cell::new(false),
            state: State::default(),
        })
    }

    fn serve(&mut self, index: usize) -> Result<(), GuestFault> {
        let Self { reclaimer, clock, again, statistics_wanted, state, .. } = self;
        let Some((role, queue)) = state.queues.get_mut(index) else { return Ok(()) };
        match role {
            Role::Inflate => again.serve_work(queue, WORK_PER_WAKE, |chain| reclaimer.inflate(&chain)),
            Role::Deflate => again.serve(queue, |chain| {
                reclaimer.counters.deflated_pages += readable_len(&chain) / 4;
                Ok(0)
            }),
            Role::Reporting => again.serve_work(queue, WORK_PER_WAKE, |chain| reclaimer.report(&chain)),
            Role::Statistics => {
                let hear = |chain: &Chain| state.statistics.hear(chain, clock.now_ns());
                serve_statistics(queue, &mut state.statistics_head, statistics_wanted, hear)
            }
            Role::Unused => Ok(()),
        }
    }

    /// The host wants something, or there was more to do than one turn allows.
    fn called(&mut self) -> Result<(), GuestFault> {
        (0..self.state.queues.len()).try_for_each(|index| self.serve(index))
    }

    /// The guest shall give this many bytes back, in pages of 4 KiB, and take what is beyond again. It
    /// does so in its own time, or not at all.
    fn set_target(&mut self, bytes: u64) -> Result<(), CommandError> {
        let most = self.options.memory_bytes;
        let pages = u32::try_from(bytes / PAGE).ok().filter(|_| bytes <= most);
        let Some(pages) = pages else {
            return Err(CommandError::Invalid(format!(
                "the guest cannot give back {bytes} bytes, since it has {most}"
            )));
        };
        self.config.update(|config| put(config, NUM_PAGES, pages));
        if let Some((_, queue)) = self.state.queues.first() {
            queue.interrupt().config_changed();
        }
        Ok(())
    }

    fn want_statistics(&self) {
        self.statistics_wanted.set(true);
        self.again.call();
    }

    fn gives_statistics(&self) -> bool {
        self.state.queues.iter().any(|(role, queue)| *role == Role::Statistics && queue.is_ready())
    }

    fn read(&self) -> BalloonState {
        let Statistics { values, count, at_ns } = &self.state.statistics;
        let age_ms = self.clock.now_ns().saturating_sub(*at_ns) / NS_PER_MS;
        BalloonState {
            target_bytes: u64::from(get(&self.config, NUM_PAGES)) * PAGE,
            actual_bytes: u64::from(get(&self.config, ACTUAL)) * PAGE,
            statistics_count: *count,
            statistics_age_ms: (*count > 0).then_some(age_ms),
            statistics: values.clone(),
        }
    }
}

impl Statistics {
    fn hear(&mut self, chain: &Chain, now_ns: u64) {
        *self = Self { values: read_statistics(chain), count: self.count.saturating_add(1), at_ns: now_ns };
    }
}

/// The driver has put a buffer of statistics into the queue; it gets it back when the host wants fresh
/// ones (virtio 1.2 section 5.5.6.3).
fn serve_statistics(
    queue: &mut VirtQueue,
    held: &mut Option<u16>,
    wanted: &Cell<bool>,
    mut hear: impl FnMut(&Chain),
) -> Result<(), GuestFault> {
    for _ in 0..queue.size() {
        let Some(chain) = queue.pop()? else {
            if queue.is_ready() && queue.enable_kicks()? {
                continue;
            }
            break;
        };
        hear(&chain);
        // A driver has one such buffer; one that gives more gets the older ones back.
        if let Some(older) = held.replace(chain.head_index()) {
            queue.complete(older, 0)?;
        }
    }
    if wanted.get()
        && let Some(head) = held.take()
    {
        wanted.set(false);
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
    /// How often the host was asked to discard something.
    asked: u64,
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
    fn inflate(&mut self, chain: &Chain) -> Result<Served, GuestFault> {
        let before = self.asked;
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
        Ok(self.served_since(before))
    }

    fn served_since(&self, before: u64) -> Served {
        let work = u32::try_from(self.asked.saturating_sub(before)).unwrap_or(u32::MAX);
        Served { written: 0, work }
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
    fn report(&mut self, chain: &Chain) -> Result<Served, GuestFault> {
        let before = self.asked;
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
        Ok(self.served_since(before))
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
            self.asked = self.asked.saturating_add(1);
            match self.reclaim.discard(GuestAddress(from), to - from) {
                Ok(()) => self.counters.discarded_bytes += to - from,
                Err(error) => {
                    let len = to - from;
                    log::error!("cannot give {len} bytes of guest memory at {from:#x} back: {error}");
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
            features: self.options.features(),
            queue_sizes: vec![QUEUE_SIZE; 5],
            config: Arc::clone(&self.config),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.again.as_raw_fd()]
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
        let Self { reclaimer: _, options: _, clock: _, config, again, statistics_wanted, state } = self;
        *state = State::default();
        // What it had given back it now owns again; the host still wants what it wanted.
        config.update(|config| put(config, ACTUAL, 0));
        statistics_wanted.set(false);
        again.clear();
    }

    fn positions(&self) -> Vec<Position> {
        let State { queues, statistics_head, .. } = &self.state;
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
        let BalloonState { target_bytes, actual_bytes, statistics, .. } = self.read();
        metrics.extend([("target_bytes", target_bytes), ("actual_bytes", actual_bytes)]);
        metrics.extend(statistics);
        // Whoever asks again then reads what was true at this time, not at the driver's start.
        self.want_statistics();
        metrics
    }

    fn command(&mut self, command: &DeviceCommand) -> Result<DeviceAnswer, CommandError> {
        match *command {
            DeviceCommand::SetBalloonTarget { bytes } => self.set_target(bytes)?,
            DeviceCommand::ReadBalloon => {}
            DeviceCommand::RefreshBalloonStatistics if self.gives_statistics() => self.want_statistics(),
            _ => return Err(CommandError::Unsupported),
        }
        Ok(DeviceAnswer::Balloon(self.read()))
    }
}

impl Options {
    fn features(self) -> u64 {
        let offered = [
            (STATISTICS, true),
            (DEFLATE_ON_OOM, self.deflate_on_oom),
            (REPORTING, self.free_page_reporting),
        ];
        offered.iter().filter(|(_, on)| *on).fold(0, |features, (feature, _)| features | feature)
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
const NS_PER_MS: u64 = 1_000_000;

// Features.
const STATISTICS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const REPORTING: u64 = 1 << 5;

/// The balloon's unit, whatever the guest's page size is.
const PAGE: u64 = 4096;
/// Page numbers taken from one chain; what is beyond is not discarded. Linux sends 256, Windows 1,024. Each
/// can cost a system call.
const PAGES_MAX: usize = 1024;
/// How often the host is asked to discard something, in one wake and for one queue, before others get their
/// turn; the last chain may go beyond by what it holds.
const WORK_PER_WAKE: u32 = 1024;
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
