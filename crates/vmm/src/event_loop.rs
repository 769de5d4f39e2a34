//! Everything that happens to a machine happens here, on one thread: the driver's kicks, the
//! backends' completions, the console, the control socket, and the news of the vCPUs.
//!
//! To fall asleep and be woken costs more than most of what the loop is woken for, on the processor of whoever
//! wakes it too. So while things follow each other closely it keeps looking for a moment before it sleeps
//! ([`Patience`]).

#![allow(unsafe_code, reason = "the processor's counter is read")]

use std::{
    arch::x86_64::_rdtsc,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use ec2vmm_devices::virtio::Wake;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::slots::{Slot, SlotId};

/// What the loop waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// News of vCPU threads.
    Mailbox,
    /// The console's descriptor can be read or written.
    Console,
    /// The guest has printed something.
    ConsoleOutput,
    /// The guest has room for input again.
    ConsoleInput,
    /// Those who look at the console through its socket, or want to.
    ConsoleClients,
    /// The control socket.
    Control,
    /// The stream of events can be written again.
    Events,
    /// The owner has let go.
    Lifeline,
    /// It is time to look after the vCPUs.
    Watch,
    /// It is time to see whether the guest reboots.
    Reboot,
    /// The driver has kicked a queue.
    Queue {
        /// Which device.
        slot: SlotId,
        /// Number of the queue.
        queue: u16,
    },
    /// A device's own descriptor is ready.
    Device {
        /// Which device.
        slot: SlotId,
        /// Index of the descriptor.
        source: usize,
    },
}

impl Source {
    /// As epoll carries it: what in bits 48 to 55, the device in bits 16 to 47, its queue or descriptor in
    /// bits 0 to 15.
    fn token(self) -> u64 {
        let of = |kind: u64| kind << 48;
        let of_device = |kind, SlotId(slot), index: u64| of(kind) | u64::from(slot) << 16 | index & 0xffff;
        match self {
            Self::Mailbox => of(0),
            Self::Console => of(1),
            Self::ConsoleOutput => of(2),
            Self::ConsoleInput => of(3),
            Self::Control => of(4),
            Self::Lifeline => of(5),
            Self::Queue { slot, queue } => of_device(6, slot, queue.into()),
            Self::Device { slot, source } => of_device(7, slot, source as u64),
            Self::ConsoleClients => of(8),
            Self::Events => of(9),
            Self::Watch => of(10),
            Self::Reboot => of(11),
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "each part has its width")]
    fn from_token(token: u64) -> Option<Self> {
        let slot = SlotId((token >> 16) as u32);
        let index = token as u16;
        Some(match token >> 48 {
            0 => Self::Mailbox,
            1 => Self::Console,
            2 => Self::ConsoleOutput,
            3 => Self::ConsoleInput,
            4 => Self::Control,
            5 => Self::Lifeline,
            6 => Self::Queue { slot, queue: index },
            7 => Self::Device { slot, source: index.into() },
            8 => Self::ConsoleClients,
            9 => Self::Events,
            10 => Self::Watch,
            11 => Self::Reboot,
            _ => return None,
        })
    }
}

/// The sources, and which of them are ready.
pub struct EventLoop {
    epoll: Epoll,
    ready: Vec<EpollEvent>,
    patience: Patience,
}

impl EventLoop {
    /// Waits for nothing yet.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new() -> io::Result<Self> {
        let ready = vec![EpollEvent::default(); READY_MAX];
        Ok(Self { epoll: Epoll::new()?, ready, patience: Patience::new(processors()) })
    }

    /// Waits for input on `fd` from now on.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub fn watch(&self, fd: RawFd, source: Source) -> io::Result<()> {
        self.add(fd, source, EventSet::IN)
    }

    /// Waits for input and output on `fd` from now on, edge-triggered.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub fn watch_edges(&self, fd: RawFd, source: Source) -> io::Result<()> {
        self.add(fd, source, EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED)
    }

    /// Waits until `fd` can be written again from now on, edge-triggered.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub fn watch_writable_edges(&self, fd: RawFd, source: Source) -> io::Result<()> {
        self.add(fd, source, EventSet::OUT | EventSet::EDGE_TRIGGERED)
    }

    /// Waits for the other end of `fd` to be closed.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub fn watch_hangup(&self, fd: &OwnedFd, source: Source) -> io::Result<()> {
        self.add(fd.as_raw_fd(), source, EventSet::HANG_UP | EventSet::READ_HANG_UP)
    }

    /// Waits for `fd` no more.
    ///
    /// # Errors
    /// It was not waited for.
    pub fn forget(&self, fd: RawFd) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }

    /// Waits for the kicks of a device's queues.
    ///
    /// # Errors
    /// See [`Self::watch`].
    pub fn watch_kicks(&self, id: SlotId, slot: &Slot) -> io::Result<()> {
        (0..)
            .zip(slot.kicks())
            .try_for_each(|(queue, kick)| self.watch(kick.as_raw_fd(), Source::Queue { slot: id, queue }))
    }

    /// A device's driver is ready: waits for its own descriptors too, and wakes it for all that may
    /// have come before.
    pub fn start_device(&self, id: SlotId, slot: &mut Slot) {
        let sources = slot.sources();
        for (source, &fd) in sources.iter().enumerate() {
            if let Err(error) = self.watch_edges(fd, Source::Device { slot: id, source }) {
                log::error!("{}: waiting for its descriptor {source}: {error}", slot.name);
            }
        }
        for queue in (0..).take(slot.kicks().len()) {
            slot.wake(Wake::Queue(queue));
        }
        for source in 0..sources.len() {
            slot.wake(Wake::Source(source));
        }
    }

    /// A device is to be as born: its own descriptors are waited for no more.
    pub fn stop_device(&self, slot: &mut Slot) {
        for fd in slot.sources() {
            self.forget_if_watched(fd, slot);
        }
        slot.reset();
    }

    /// A device is to stand still: nothing of its is waited for.
    pub fn hold(&self, slot: &mut Slot) {
        self.forget_all(slot);
        slot.hold();
    }

    /// A device is to be gone: nothing of its is waited for, and it has let go of the guest's memory.
    pub fn let_go(&self, slot: &mut Slot) {
        self.forget_all(slot);
        slot.reset();
    }

    /// A device that stood still goes on, and looks at all that has come meanwhile.
    pub fn go_on(&self, id: SlotId, slot: &mut Slot) {
        if let Err(error) = self.watch_kicks(id, slot) {
            log::error!("{}: waiting for its doorbells: {error}", slot.name);
        }
        if slot.is_active() {
            self.start_device(id, slot);
        }
    }

    /// Waits until something happens.
    ///
    /// # Errors
    /// The system refused to wait.
    pub fn wait(&mut self) -> io::Result<Vec<Source>> {
        const FOREVER: i32 = -1;
        const NOT_AT_ALL: i32 = 0;
        let begun = ticks();
        let Patience { now: patience, .. } = self.patience;
        let count = loop {
            let patient = patience > 0 && ticks().wrapping_sub(begun) < patience;
            let timeout = if patient { NOT_AT_ALL } else { FOREVER };
            match self.epoll.wait(timeout, &mut self.ready) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) => {}
                result => break result?,
            }
        };
        self.patience.learn(ticks().wrapping_sub(begun));
        Ok(self.ready.iter().take(count).filter_map(|event| Source::from_token(event.data())).collect())
    }

    fn forget_all(&self, slot: &Slot) {
        for fd in slot.sources().into_iter().chain(slot.kicks().iter().map(|kick| kick.as_raw_fd())) {
            self.forget_if_watched(fd, slot);
        }
    }

    /// One that is not waited for, because its device was never started, needs no forgetting.
    fn forget_if_watched(&self, fd: RawFd, slot: &Slot) {
        if let Err(error) = self.forget(fd)
            && error.raw_os_error() != Some(libc::ENOENT)
        {
            log::error!("{}: forgetting its descriptor {fd}: {error}", slot.name);
        }
    }

    fn add(&self, fd: RawFd, source: Source, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, source.token()))
    }
}

/// How long to look for what comes next before falling asleep, in [ticks]: step by step as long as would have
/// caught what came last, if that is not long.
///
/// The price: while something comes every few dozen microseconds, the loop takes a whole processor, of the machine's
/// own limit where it has one.
#[derive(Clone, Copy, Debug)]
struct Patience {
    now: u64,
    most: u64,
}

impl Patience {
    /// None ever on a single processor: whoever is waited for needs it.
    fn new(processors: u32) -> Self {
        Self { now: 0, most: if processors > 1 { PATIENCE_MAX } else { 0 } }
    }

    /// Something has come after so long. As with KVM's halt polling and QEMU's I/O threads: longer step by step,
    /// and not at all once it would have had to be too long.
    fn learn(&mut self, waited: u64) {
        if waited > self.most {
            self.now = 0;
        } else if waited > self.now {
            self.now = (self.now * 2).clamp(PATIENCE_MIN, self.most);
        }
    }
}

/// The processor's time stamp counter, two to four thousand a microsecond. It need not be right, as a clock must,
/// and on hosts whose clock has to be asked for by a call it costs nothing.
fn ticks() -> u64 {
    // SAFETY: it changes nothing, and every x86-64 processor has it.
    unsafe { _rdtsc() }
}

/// How many processors this thread may run on.
fn processors() -> u32 {
    // Where the kernel has more than fit into the set, there are several.
    rustix::thread::sched_getaffinity(None).map_or(u32::MAX, |set| set.count())
}

/// Some 3 µs.
const PATIENCE_MIN: u64 = 10_000;
/// Some 50 µs (40 to 80 by the counter's rate): what sleeping and being woken costs, generously.
const PATIENCE_MAX: u64 = 160_000;
const READY_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::{PATIENCE_MAX, Patience, SlotId, Source};

    #[test]
    fn patience_grows_while_it_would_have_paid() {
        let mut patience = Patience::new(2);
        let mut after = |waited: &[u64]| {
            waited.iter().for_each(|&ticks| patience.learn(ticks));
            patience.now
        };
        assert_eq!(after(&[1 << 40, PATIENCE_MAX + 1]), 0, "what is rare is slept for");
        assert_eq!(after(&[60_000]), 10_000);
        assert_eq!(after(&[60_000, 60_000, 60_000]), 80_000);
        assert_eq!(after(&[60_000, 80_000, 1]), 80_000, "that is enough");
        assert_eq!(after(&[90_000, PATIENCE_MAX]), PATIENCE_MAX, "and no more");
        assert_eq!(after(&[u64::MAX]), 0, "the counter of another processor may be behind");
    }

    #[test]
    fn there_is_none_on_a_single_processor() {
        let mut patience = Patience::new(1);
        patience.learn(1);
        assert_eq!(patience.now, 0);
    }

    #[test]
    fn a_source_comes_back_from_its_token() {
        let sources = [
            Source::Mailbox,
            Source::Console,
            Source::ConsoleOutput,
            Source::ConsoleInput,
            Source::ConsoleClients,
            Source::Control,
            Source::Events,
            Source::Lifeline,
            Source::Watch,
            Source::Reboot,
            Source::Queue { slot: SlotId(31), queue: 1023 },
            Source::Queue { slot: SlotId(u32::MAX), queue: u16::MAX },
            Source::Device { slot: SlotId(7), source: 3 },
        ];
        for source in sources {
            assert_eq!(Source::from_token(source.token()), Some(source));
        }
    }
}
