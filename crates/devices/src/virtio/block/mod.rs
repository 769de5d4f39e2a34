//! virtio-block (virtio 1.2 section 5.2): sectors of a disk that a [`Backend`] serves.
//!
//! The device takes requests apart, hands them to the backend and completes them in the order in which
//! the backend ends them; it never waits for a disk but in [`VirtioDevice::quiesce`] and [`VirtioDevice::reset`].
//!
//! Limits: 256 descriptors a queue, as many requests under way, and no more once they are 256 MiB; 253 MiB and
//! 253 pieces of data a request, which are offered as pieces of 1 MiB; one range of at most 2 GiB a discard or
//! write-zeroes. A disk's size is rounded down to whole sectors of 512 bytes. The cache mode is not the driver's to change: a driver that takes FLUSH gets
//! write-back, one that does not gets every write made durable before it completes.
//!
//! Invariant: every chain that has room for a status gets one, and is given back once.

mod backend;
mod limits;
mod request;
#[cfg(test)]
mod tests;

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use virtio_bindings::{
    virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_ID_BYTES},
    virtio_ids::VIRTIO_ID_BLOCK,
};
use vm_memory::{Bytes, GuestAddress};

pub use self::backend::{Backend, Completion, Operation, Request};
use self::{
    limits::{Limits, SECTOR},
    request::{Parsed, Spares, Status, Work},
};
use super::{
    Again, CommandError, ConfigSpace, DeviceAnswer, DeviceCommand, GuestFault, Identity, Position, VirtQueue,
    VirtioDevice, Wake, queue::Chain,
};
use crate::{Memory, rate_limit::RateLimiter};

/// A disk on the virtio bus.
pub struct Block<B> {
    backend: B,
    limits: Limits,
    serial: [u8; ID_LEN],
    config: Arc<ConfigSpace>,
    /// Written when a wake ends with work left, so that others get their turn.
    again: Again,
    /// No more is taken from the driver while requests of so many bytes are under way: what a reset has
    /// to wait for, and what a backend may copy at once, must not keep the loop for long.
    bytes_max: u64,
    limiter: RateLimiter,
    counters: Counters,
    state: State,
}

/// What a disk is besides its content.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the driver reads as the serial number: at most 20 bytes.
    pub serial: String,
    /// Whether writing is refused.
    pub read_only: bool,
    /// How many queues the driver may use, 1 to 64.
    pub queues: u16,
}

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// [`Options::serial`] is too long.
    #[error("the serial number {0:?} is longer than 20 bytes")]
    Serial(String),
    /// [`Options::queues`] is out of range.
    #[error("{0} queues: between 1 and 64 are possible")]
    Queues(u16),
    /// The kernel gives no event descriptor.
    #[error("cannot make an event descriptor")]
    Event(#[source] io::Error),
}

/// All that a reset clears.
#[derive(Default)]
struct State {
    queues: Vec<VirtQueue>,
    /// The queue that is served first when all are: a limit would else be the first queue's alone.
    next_queue: usize,
    /// The driver did not take FLUSH, so a write is durable when it completes.
    write_through: bool,
    /// A flush that follows a write waits to be submitted.
    flush_enqueued: bool,
    /// By token.
    under_way: Vec<Option<UnderWay>>,
    free_tokens: Vec<u16>,
    bytes_under_way: u64,
    /// Of what has ended since the driver was told last.
    bytes_untold: u64,
    spares: Spares,
}

/// A request that the backend has.
#[derive(Clone, Copy)]
struct UnderWay {
    queue: u16,
    head: u16,
    status: GuestAddress,
    kind: Kind,
    bytes: u64,
    /// A flush comes before the answer.
    flush_after: bool,
}

/// What one wake may do, so that a driver that never stops cannot keep the loop from the other devices.
struct Share {
    /// How often it may look for a chain.
    looks: usize,
    /// How much it may submit; the last request may be larger than what is left.
    bytes: u64,
}

impl Share {
    fn is_used_up(&self) -> bool {
        self.looks == 0 || self.bytes == 0
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

#[derive(Default)]
struct Counters {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    write_bytes: u64,
    flushes: u64,
    discards: u64,
    write_zeroes: u64,
    /// Failed by the disk.
    errors: u64,
    /// Refused: they made no sense.
    refused: u64,
}

impl<B: Backend> Block<B> {
    /// A disk on `backend`. `limiter` counts the requests that reach it, and what they read and write.
    ///
    /// # Errors
    /// An option is out of range, or the kernel has no event descriptor left.
    pub fn new(backend: B, options: &Options, limiter: RateLimiter) -> Result<Self, Error> {
        let Options { serial, read_only, queues } = options;
        if !(1..=QUEUES_MAX).contains(queues) {
            return Err(Error::Queues(*queues));
        }
        let mut id = [0; ID_LEN];
        let Some(room) = id.get_mut(..serial.len()) else { return Err(Error::Serial(serial.clone())) };
        room.copy_from_slice(serial.as_bytes());
        let limits = Limits::new(backend.capacity(), backend.discard_granularity(), *read_only, *queues);
        Ok(Self {
            config: Arc::new(ConfigSpace::read_only(limits.config())),
            again: Again::new().map_err(Error::Event)?,
            bytes_max: BYTES_MAX,
            limiter,
            counters: Counters::default(),
            state: State::default(),
            serial: id,
            backend,
            limits,
        })
    }

    /// Serve what the driver has put into these queues, a bit each, and what it puts there meanwhile, for one
    /// share of the loop's time.
    ///
    /// The driver hears of what has ended when there is no more to do at once, or when it is much: most of
    /// what an interrupt costs the guest does not depend on how many requests it is for.
    fn serve(&mut self, queues: u64) -> Result<(), GuestFault> {
        let count = self.state.queues.len();
        let first = self.state.next_queue;
        self.state.next_queue = (first + 1) % count.max(1);
        let mut share = SHARE;
        self.reap()?;
        while !share.is_used_up() {
            let mut found = false;
            for index in (first..count).chain(0..first).filter(|index| queues & 1 << index != 0) {
                found |= self.take(index, &mut share)?;
            }
            if !found && !share.is_used_up() {
                return self.notify();
            }
            self.backend.submit();
            // Much of what was submitted has ended by now: the page cache had it.
            self.reap()?;
            if self.state.bytes_untold >= UNTOLD_MAX {
                self.notify()?;
            }
        }
        self.again.call();
        self.notify()
    }

    /// Take some of what the driver has put into a queue, and say whether anything was there. The driver is asked
    /// to kick again only where nothing was: else this is called again, in this wake or, once the share is used
    /// up, in the next.
    fn take(&mut self, index: usize, share: &mut Share) -> Result<bool, GuestFault> {
        let Some(queue) = self.state.ready_queue(index) else { return Ok(false) };
        queue.disable_kicks()?;
        let mut found = false;
        let mut taken = 0;
        // With no token left, or much under way, the next completion comes back here.
        while !share.is_used_up()
            && taken < SUBMITTED_MAX
            && !self.state.free_tokens.is_empty()
            && self.state.bytes_under_way < self.bytes_max
        {
            let Some(queue) = self.state.ready_queue(index) else { break };
            // Counted whether it finds anything or not, so that rings that cannot be read have an end too.
            share.looks -= 1;
            if let Some(chain) = queue.pop()? {
                if !self.limiter.is_open() {
                    // The driver need not kick: the limiter's timer comes back here.
                    queue.undo_pop();
                    break;
                }
                found = true;
                let before = self.state.bytes_under_way;
                self.begin(index, chain)?;
                let bytes = self.state.bytes_under_way - before;
                taken += bytes;
                share.bytes = share.bytes.saturating_sub(bytes);
            } else if found || !queue.enable_kicks()? {
                break;
            }
        }
        Ok(found)
    }

    /// Tell the driver what has ended.
    fn notify(&mut self) -> Result<(), GuestFault> {
        self.state.bytes_untold = 0;
        self.state.queues.iter_mut().filter(|queue| queue.is_ready()).try_for_each(VirtQueue::notify)
    }

    /// Hand a request to the backend, or answer it.
    fn begin(&mut self, index: usize, chain: Chain) -> Result<(), GuestFault> {
        let Self { backend, limits, serial, limiter, counters, state, .. } = self;
        let State { queues, write_through, under_way, free_tokens, bytes_under_way, spares, .. } = state;
        let Some(queue) = queues.get_mut(index) else { return Ok(()) };
        let head = chain.head_index();
        let Some(Parsed { head, status, work }) = request::parse(chain, limits, queue.memory(), spares)
        else {
            counters.refused += 1;
            return queue.complete(head, 0);
        };
        let (outcome, written) = match work {
            Work::Disk(operation) => {
                // `take` saw to it that there is a token.
                let Some(token) = free_tokens.pop() else { return Ok(()) };
                if let Some(slot) = under_way.get_mut(usize::from(token)) {
                    let work = UnderWay::new(queue.index(), head, status, &operation, *write_through);
                    limiter.charge(work.moved());
                    *bytes_under_way += work.bytes;
                    *slot = Some(work);
                    backend.enqueue(Request { token, operation });
                }
                return Ok(());
            }
            Work::Serial(buffers) => {
                buffers.write_at(0, serial);
                (Status::Ok, VIRTIO_BLK_ID_BYTES + 1)
            }
            Work::Answer(outcome) => (outcome, 1),
        };
        counters.refused += u64::from(outcome != Status::Ok);
        answer(queue.memory(), status, outcome);
        queue.complete(head, written)
    }

    /// Answer what the backend has ended.
    fn reap(&mut self) -> Result<(), GuestFault> {
        while let Some(done) = self.next_completion() {
            let Completion { request: Request { token, operation }, result } = done;
            if let Operation::Read { buffers, .. } | Operation::Write { buffers, .. } = operation {
                self.state.spares.keep(buffers);
            }
            let Some(slot) = self.state.under_way.get_mut(usize::from(token)) else { continue };
            let Some(mut work) = slot.take() else { continue };
            if result.is_ok() && work.flush_after {
                work.flush_after = false;
                *slot = Some(work);
                self.backend.enqueue(Request { token, operation: Operation::Flush });
                self.state.flush_enqueued = true;
                continue;
            }
            self.state.free_tokens.push(token);
            self.state.bytes_under_way -= work.bytes;
            let outcome = self.counters.count(&work, result);
            let Some(queue) = self.state.queues.get_mut(usize::from(work.queue)) else { continue };
            answer(queue.memory(), work.status, outcome);
            queue.complete(work.head, work.written(outcome))?;
            self.state.bytes_untold += work.bytes;
        }
        Ok(())
    }

    fn next_completion(&mut self) -> Option<Completion> {
        let done = self.backend.completed();
        if done.is_none() && self.state.flush_enqueued {
            self.state.flush_enqueued = false;
            self.backend.submit();
            return self.backend.completed();
        }
        done
    }

    fn resize(&mut self, bytes: u64) -> Result<(), CommandError> {
        if self.limits.read_only {
            return Err(CommandError::Invalid("the disk is read-only".into()));
        }
        let now = self.backend.capacity();
        if bytes < now {
            return Err(CommandError::Invalid(format!("the disk has {now} bytes, and can only grow")));
        }
        if !bytes.is_multiple_of(SECTOR) {
            return Err(CommandError::Invalid(format!("{bytes} bytes are not whole sectors of {SECTOR}")));
        }
        self.backend.grow(bytes)?;
        self.limits.grow(bytes);
        let sectors = self.limits.sectors.to_le_bytes();
        self.config.update(|config| config.iter_mut().zip(sectors).for_each(|(to, from)| *to = from));
        if let Some(queue) = self.state.queues.first() {
            queue.interrupt().config_changed();
        }
        Ok(())
    }
}

impl<B: Backend> VirtioDevice for Block<B> {
    fn identity(&self) -> Identity {
        Identity {
            device_type: VIRTIO_ID_BLOCK,
            pci_class: PCI_CLASS_SCSI,
            features: self.limits.features(),
            queue_sizes: vec![QUEUE_SIZE; usize::from(self.limits.queues)],
            config: Arc::clone(&self.config),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.backend.event(), self.again.as_raw_fd(), self.limiter.descriptor()]
    }

    fn activate(&mut self, features: u64, queues: Vec<VirtQueue>) -> Result<(), GuestFault> {
        self.reset();
        let slots: u16 = queues.iter().map(VirtQueue::size).fold(0, u16::saturating_add);
        self.state = State {
            next_queue: 0,
            write_through: features & 1 << VIRTIO_BLK_F_FLUSH == 0,
            flush_enqueued: false,
            under_way: vec![None; usize::from(slots)],
            free_tokens: (0..slots).collect(),
            bytes_under_way: 0,
            bytes_untold: 0,
            spares: Spares::default(),
            queues,
        };
        Ok(())
    }

    fn wake(&mut self, wake: Wake) -> Result<(), GuestFault> {
        self.serve(match wake {
            Wake::Queue(index) => 1 << index,
            Wake::Source(_) => u64::MAX,
        })
    }

    fn quiesce(&mut self) -> Result<(), GuestFault> {
        // More than once where a write is followed by the flush that makes it durable.
        while self.state.under_way.iter().any(Option::is_some) {
            self.backend.wait_idle();
            self.reap()?;
        }
        self.notify()
    }

    fn reset(&mut self) {
        // What was limited stays so: a guest must not come to more by a reset.
        let Self {
            backend,
            limits: _,
            serial: _,
            config: _,
            again: _,
            bytes_max: _,
            limiter: _,
            counters: _,
            state,
        } = self;
        backend.wait_idle();
        while backend.completed().is_some() {}
        *state = State::default();
    }

    fn write_back(&mut self) -> io::Result<()> {
        if self.limits.read_only {
            return Ok(());
        }
        self.backend.enqueue(Request { token: WRITE_BACK, operation: Operation::Flush });
        self.backend.submit();
        self.backend.wait_idle();
        let mut result = Ok(());
        while let Some(Completion { request, result: ended }) = self.backend.completed() {
            if request.token == WRITE_BACK {
                result = ended;
            }
        }
        result
    }

    fn positions(&self) -> Vec<Position> {
        self.state.queues.iter().map(|queue| queue.position(0)).collect()
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        let Counters {
            reads,
            read_bytes,
            writes,
            write_bytes,
            flushes,
            discards,
            write_zeroes,
            errors,
            refused,
        } = self.counters;
        vec![
            ("reads", reads),
            ("read_bytes", read_bytes),
            ("writes", writes),
            ("write_bytes", write_bytes),
            ("flushes", flushes),
            ("discards", discards),
            ("write_zeroes", write_zeroes),
            ("errors", errors),
            ("refused", refused),
            ("throttled", self.limiter.throttled()),
        ]
    }

    fn command(&mut self, command: &DeviceCommand) -> Result<DeviceAnswer, CommandError> {
        match *command {
            DeviceCommand::LimitRequests(limit) => self.limiter.set(limit),
            DeviceCommand::Resize { bytes } => self.resize(bytes)?,
            _ => return Err(CommandError::Unsupported),
        }
        Ok(DeviceAnswer::Done)
    }
}

impl State {
    fn ready_queue(&mut self, index: usize) -> Option<&mut VirtQueue> {
        self.queues.get_mut(index).filter(|queue| queue.is_ready())
    }
}

impl UnderWay {
    fn new(queue: u16, head: u16, status: GuestAddress, operation: &Operation, write_through: bool) -> Self {
        let (kind, bytes) = match operation {
            Operation::Read { buffers, .. } => (Kind::Read, buffers.len()),
            Operation::Write { buffers, .. } => (Kind::Write, buffers.len()),
            Operation::Flush => (Kind::Flush, 0),
            Operation::Discard { len, .. } => (Kind::Discard, *len),
            Operation::WriteZeroes { len, .. } => (Kind::WriteZeroes, *len),
        };
        let flush_after = write_through && matches!(kind, Kind::Write | Kind::WriteZeroes);
        Self { queue, head, status, kind, bytes, flush_after }
    }

    /// Bytes read from the disk or written to it.
    fn moved(&self) -> u64 {
        match self.kind {
            Kind::Read | Kind::Write => self.bytes,
            Kind::Flush | Kind::Discard | Kind::WriteZeroes => 0,
        }
    }

    /// Bytes written to the chain: a read's data, and the status.
    fn written(&self, outcome: Status) -> u32 {
        match (self.kind, outcome) {
            (Kind::Read, Status::Ok) => u32::try_from(self.bytes + 1).unwrap_or(u32::MAX),
            _ => 1,
        }
    }
}

impl Counters {
    fn count(&mut self, work: &UnderWay, result: io::Result<()>) -> Status {
        if let Err(error) = result {
            if error.kind() == io::ErrorKind::Unsupported {
                return Status::Unsupported;
            }
            self.errors += 1;
            log::warn!("a disk request failed, the {}. so far: {error}", self.errors);
            return Status::Error;
        }
        let (count, bytes) = match work.kind {
            Kind::Read => (&mut self.reads, Some(&mut self.read_bytes)),
            Kind::Write => (&mut self.writes, Some(&mut self.write_bytes)),
            Kind::Flush => (&mut self.flushes, None),
            Kind::Discard => (&mut self.discards, None),
            Kind::WriteZeroes => (&mut self.write_zeroes, None),
        };
        *count += 1;
        if let Some(total) = bytes {
            *total += work.bytes;
        }
        Status::Ok
    }
}

/// Write a status. Its address was checked to be memory when the chain was taken apart.
fn answer(memory: &Memory, status: GuestAddress, outcome: Status) {
    if memory.write_obj(outcome.byte(), status).is_err() {
        log::debug!("no memory for the status at {:#x}", status.0);
    }
}

const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;
const QUEUE_SIZE: u16 = 256;
const QUEUES_MAX: u16 = 64;
/// Mass storage, SCSI: what virtio-block calls itself on PCI.
const PCI_CLASS_SCSI: u32 = 0x01_00_00;
/// The token of a flush that no driver asked for.
const WRITE_BACK: u16 = u16::MAX;
const SHARE: Share = Share { looks: 512, bytes: 4 << 20 };
/// How much may end, bytes, before the driver hears of it.
const UNTOLD_MAX: u64 = 256 << 10;
/// How much of a queue is submitted at once, bytes: what the page cache has is copied meanwhile, and not told of
/// before.
const SUBMITTED_MAX: u64 = 256 << 10;
/// As much as drivers have under way, and seconds for a slow disk.
const BYTES_MAX: u64 = 256 << 20;
