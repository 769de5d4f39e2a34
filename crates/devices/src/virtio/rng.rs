//! virtio-rng (virtio 1.2 section 5.4): the guest offers buffers, the device fills them with entropy.
//!
//! Invariant: one request costs the host no more than [`REQUEST_BYTES_MAX`].

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use vm_memory::{Address, Bytes};

use super::{
    Again, CommandError, ConfigSpace, DeviceAnswer, DeviceCommand, GuestFault, Identity, Position, VirtQueue,
    VirtioDevice, Wake, queue::Chain,
};
use crate::rate_limit::RateLimiter;

/// Where random bytes come from.
pub trait Entropy: Send {
    /// Fills `bytes`, without blocking.
    ///
    /// # Errors
    /// There are none.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()>;
}

/// The device.
pub struct Rng<E> {
    source: Source<E>,
    limiter: RateLimiter,
    again: Again,
    /// None until the driver is ready.
    queue: Option<VirtQueue>,
}

/// The entropy, and what was made of it.
struct Source<E> {
    entropy: E,
    served_bytes: u64,
    errors: u64,
}

impl<E: Entropy> Rng<E> {
    /// The device, waiting for its driver. `limiter` counts requests and the bytes that they are given.
    ///
    /// # Errors
    /// The host is out of descriptors or memory.
    pub fn new(entropy: E, limiter: RateLimiter) -> io::Result<Self> {
        let source = Source { entropy, served_bytes: 0, errors: 0 };
        Ok(Self { source, limiter, again: Again::new()?, queue: None })
    }
}

impl<E: Entropy> Source<E> {
    fn serve(&mut self, chain: &Chain) -> Result<u32, GuestFault> {
        let mut written = 0;
        let mut scratch = [0; SCRATCH as usize];
        for descriptor in chain.clone().writable() {
            let mut address = descriptor.addr();
            let mut left = descriptor.len().min(REQUEST_BYTES_MAX - written);
            while left > 0 {
                let len = left.min(SCRATCH);
                let Some(bytes) = scratch.get_mut(..len as usize) else { break };
                if let Err(error) = self.entropy.fill(bytes) {
                    self.failed(&error);
                    return Ok(written);
                }
                let outside = GuestFault::Request("entropy buffer outside of memory");
                if chain.memory().write_slice(bytes, address).is_err() {
                    return Err(outside);
                }
                address = address.checked_add(len.into()).ok_or(outside)?;
                (written, left) = (written + len, left - len);
            }
        }
        self.served_bytes += u64::from(written);
        Ok(written)
    }

    fn failed(&mut self, error: &io::Error) {
        if self.errors == 0 {
            log::error!("entropy: {error}");
        }
        self.errors += 1;
    }
}

impl<E: Entropy> VirtioDevice for Rng<E> {
    fn identity(&self) -> Identity {
        Identity {
            device_type: DEVICE_TYPE,
            // Other communication or encryption: what QEMU and others say, no driver looks.
            pci_class: 0x00_ff_00,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
            config: Arc::new(ConfigSpace::read_only(Vec::new())),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.again.as_raw_fd(), self.limiter.descriptor()]
    }

    fn activate(&mut self, _features: u64, queues: Vec<VirtQueue>) -> Result<(), GuestFault> {
        self.queue = queues.into_iter().next();
        Ok(())
    }

    fn wake(&mut self, _wake: Wake) -> Result<(), GuestFault> {
        let Self { source, limiter, again, queue } = self;
        match queue {
            Some(queue) => again.serve_limited(queue, Some(limiter), |chain| source.serve(&chain)),
            None => Ok(()),
        }
    }

    fn reset(&mut self) {
        // What was limited stays so: a guest must not come to more by a reset.
        let Self { source: _, limiter: _, again, queue } = self;
        again.clear();
        *queue = None;
    }

    fn positions(&self) -> Vec<Position> {
        self.queue.iter().map(|queue| queue.position(0)).collect()
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("served_bytes", self.source.served_bytes),
            ("errors", self.source.errors),
            ("throttled", self.limiter.throttled()),
        ]
    }

    fn command(&mut self, command: &DeviceCommand) -> Result<DeviceAnswer, CommandError> {
        match *command {
            DeviceCommand::LimitRequests(limit) => self.limiter.set(limit),
            _ => return Err(CommandError::Unsupported),
        }
        Ok(DeviceAnswer::Done)
    }
}

/// The most that one request is given: what a driver asks for at once is far less.
pub const REQUEST_BYTES_MAX: u32 = 64 * 1024;
/// Bytes taken from the source at once.
const SCRATCH: u32 = 1024;
const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZE: u16 = 64;

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Entropy, REQUEST_BYTES_MAX, Rng};
    use crate::{
        rate_limit::{RateLimit, RateLimiter, TokenBucket},
        virtio::{
            CommandError, DeviceAnswer, DeviceCommand, VirtioDevice, Wake,
            testing::{Buffer, FakeTime, Guest},
        },
    };

    struct Counter(u8);

    impl Entropy for Counter {
        fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
            if self.0 == 0xff {
                return Err(io::ErrorKind::Other.into());
            }
            for byte in bytes {
                self.0 = self.0 % 0xf0 + 1;
                *byte = self.0;
            }
            Ok(())
        }
    }

    fn rng(from: u8) -> (Rng<Counter>, Guest) {
        let (rng, guest, _) = limited(from, RateLimit::default());
        (rng, guest)
    }

    fn limited(from: u8, limit: RateLimit) -> (Rng<Counter>, Guest, FakeTime) {
        let time = FakeTime::new();
        let mut rng = Rng::new(Counter(from), RateLimiter::new(limit, time.timer())).unwrap();
        let guest = Guest::new(&rng.identity().queue_sizes);
        rng.activate(0, guest.queues()).unwrap();
        (rng, guest, time)
    }

    #[test]
    fn a_limit_makes_requests_wait_and_can_be_changed() {
        let bucket = TokenBucket { per_second: 1000.try_into().unwrap(), burst: 50.try_into().unwrap() };
        let (mut rng, mut guest, time) = limited(0, RateLimit { bandwidth: Some(bucket), operations: None });
        let room = guest.room(100);
        for _ in 0..3 {
            guest.ring(0).add(&[room]);
        }
        rng.wake(Wake::Queue(0)).unwrap();
        assert_eq!(guest.ring(0).used().len(), 1, "50 are owed");
        assert_eq!(time.alarm_ns(), Some(51_000_000));
        rng.wake(Wake::Queue(0)).unwrap();
        assert_eq!(guest.ring(0).used(), []);
        time.pass_to_alarm();
        rng.wake(Wake::Source(1)).unwrap();
        assert_eq!(guest.ring(0).used().len(), 1);
        let answer = rng.command(&DeviceCommand::LimitRequests(RateLimit::default())).unwrap();
        assert_eq!((answer, time.alarm_ns()), (DeviceAnswer::Done, Some(0)));
        rng.wake(Wake::Source(1)).unwrap();
        assert_eq!(guest.ring(0).used().len(), 1);
        assert_eq!(rng.metrics()[2], ("throttled", 2));
        let refused = rng.command(&DeviceCommand::Announce).unwrap_err();
        assert!(matches!(refused, CommandError::Unsupported));
    }

    #[test]
    fn a_reset_is_no_way_round_a_limit() {
        let bucket = TokenBucket { per_second: 1.try_into().unwrap(), burst: 1.try_into().unwrap() };
        let (mut rng, mut guest, _time) = limited(0, RateLimit { bandwidth: None, operations: Some(bucket) });
        let room = guest.room(1);
        guest.ring(0).add(&[room]);
        rng.wake(Wake::Queue(0)).unwrap();
        assert_eq!(guest.ring(0).used().len(), 1);
        rng.reset();
        let mut guest = Guest::new(&[64]);
        rng.activate(0, guest.queues()).unwrap();
        let room = guest.room(1);
        guest.ring(0).add(&[room]);
        rng.wake(Wake::Queue(0)).unwrap();
        assert_eq!(guest.ring(0).used(), []);
    }

    #[test]
    fn fills_what_can_be_written() {
        let (mut rng, mut guest) = rng(0);
        rng.wake(Wake::Queue(0)).unwrap();
        let (text, a, b) = (guest.buffer(b"text"), guest.room(3), guest.room(2000));
        let head = guest.ring(0).add(&[text, a, b]);
        let empty = guest.ring(0).add(&[text]);
        rng.wake(Wake::Queue(0)).unwrap();
        assert_eq!(guest.ring(0).used(), [(head, 2003), (empty, 0)]);
        assert_eq!(guest.bytes(text), b"text");
        assert_eq!(guest.bytes(a), [1, 2, 3]);
        assert!(guest.bytes(b).iter().all(|&byte| byte != 0));
        assert_eq!(guest.interrupts.of_queue(0), 1);
        assert_eq!(rng.metrics(), [("served_bytes", 2003), ("errors", 0), ("throttled", 0)]);
    }

    #[test]
    fn one_request_is_bounded() {
        let (mut rng, mut guest) = rng(0);
        let (a, b) = (guest.room(REQUEST_BYTES_MAX - 1), guest.room(1 << 20));
        guest.ring(0).add(&[a, b]);
        rng.wake(Wake::Queue(0)).unwrap();
        assert_eq!(guest.ring(0).used(), [(0, REQUEST_BYTES_MAX)]);
        assert_eq!(guest.bytes(b)[1], 0);
    }

    #[test]
    fn a_bad_address_is_the_guests_fault() {
        for address in [16 << 20, (16 << 20) - 1, u64::MAX - 1] {
            let (mut rng, mut guest) = rng(0);
            guest.ring(0).add(&[Buffer::writable(address, 2)]);
            rng.wake(Wake::Queue(0)).unwrap_err();
            rng.reset();
            rng.wake(Wake::Source(0)).unwrap();
            rng.activate(0, guest.queues_ready(&[])).unwrap();
            rng.wake(Wake::Queue(0)).unwrap();
        }
    }

    #[test]
    fn no_entropy_gives_the_buffer_back_empty() {
        let (mut rng, mut guest) = rng(0xff);
        let room = guest.room(8);
        guest.ring(0).add(&[room]);
        rng.wake(Wake::Queue(0)).unwrap();
        assert_eq!(guest.ring(0).used(), [(0, 0)]);
        assert_eq!(rng.metrics(), [("served_bytes", 0), ("errors", 1), ("throttled", 0)]);
    }

    #[test]
    fn stops_after_one_queue_and_goes_on_later() {
        let (mut rng, mut guest) = rng(0);
        let room = guest.room(1);
        for _ in 0..64 {
            guest.ring(0).add(&[room]);
        }
        rng.wake(Wake::Queue(0)).unwrap();
        assert_eq!(guest.ring(0).used().len(), 64);
        assert!(rng.again.is_called(), "the queue may hold more");
        rng.wake(Wake::Source(0)).unwrap();
        assert!(!rng.again.is_called());
    }
}
