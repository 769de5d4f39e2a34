//! From the port to the driver.
//!
//! The driver's buffers are taken from its queue ahead of the frame, so that the kernel can write the
//! frame into them. What of a frame does not fit goes to `spill`, and the frame waits, parked, for more
//! buffers.
//!
//! How many buffers are ahead follows the frames: for a small frame after a small one a few will do. Where
//! frames can be large, the kernel would otherwise be told of some fifty buffers for each of them, however small.

use std::{collections::VecDeque, io, sync::Arc};

use super::{Counters, FRAME_MAX, FRAMES_PER_WAKE, HEADER_LEN, PIECES_MAX, Port, filter::Filter};
use crate::{
    rate_limit::RateLimiter,
    virtio::{Buffers, GuestFault, Position, VirtQueue},
};

pub(super) struct Receiver {
    queue: VirtQueue,
    mergeable: bool,
    /// Frames can be larger than an Ethernet's.
    large_frames: bool,
    /// How long the last frame was.
    last: u64,
    /// Chains taken from the queue, and their lengths.
    chains: VecDeque<(u16, u32)>,
    /// The buffers of `chains`, one after the other.
    room: Buffers,
    /// What a driver puts before the buffers that it lets us write: nothing, if it is right.
    stray: Buffers,
    spill: Vec<u8>,
    parked: Option<Frame>,
    /// The chains of one frame, kept for the allocation.
    used: Vec<(u16, u32)>,
}

/// A frame at the beginning of `room`, and from `filled` bytes on in `spill`.
#[derive(Clone, Copy)]
struct Frame {
    len: u64,
    filled: u64,
}

impl Receiver {
    pub(super) fn new(queue: VirtQueue, mergeable: bool, large_frames: bool) -> Self {
        Self {
            mergeable,
            large_frames,
            last: 0,
            chains: VecDeque::new(),
            room: Buffers::new(Arc::clone(queue.memory())),
            stray: Buffers::new(Arc::clone(queue.memory())),
            // As large as a frame: then nothing is ever cut off.
            spill: vec![0; usize::try_from(FRAME_MAX).unwrap_or(0)],
            parked: None,
            used: Vec::new(),
            queue,
        }
    }

    /// Where it stands. A frame that waits for more buffers is lost, as on any network.
    pub(super) fn position(&self) -> Position {
        self.queue.position(u16::try_from(self.chains.len()).unwrap_or(u16::MAX))
    }

    /// From now on frames can be large, or cannot.
    pub(super) fn expect_large(&mut self, large_frames: bool) {
        self.large_frames = large_frames;
    }

    /// Move frames until the port has no more, the driver has no more room, the limiter has shut, or it is
    /// others' turn: then it returns true.
    pub(super) fn run(
        &mut self,
        port: &mut impl Port,
        filter: &Filter,
        limiter: &mut RateLimiter,
        counters: &mut Counters,
    ) -> Result<bool, GuestFault> {
        if !self.queue.is_ready() {
            return Ok(false);
        }
        self.queue.disable_kicks()?;
        let mut more = true;
        for _ in 0..FRAMES_PER_WAKE {
            if !self.step(port, filter, limiter, counters)? {
                more = false;
                break;
            }
        }
        self.queue.notify()?;
        Ok(more)
    }

    /// One frame. False: there is none, or no room for it until the driver kicks, or it may not pass yet.
    fn step(
        &mut self,
        port: &mut impl Port,
        filter: &Filter,
        limiter: &mut RateLimiter,
        counters: &mut Counters,
    ) -> Result<bool, GuestFault> {
        let full = self.gather(counters)?;
        if let Some(frame) = self.parked {
            if frame.len <= self.room.len() {
                let rest = usize::try_from(frame.len - frame.filled).unwrap_or(usize::MAX);
                self.room.write_at(frame.filled, self.spill.get(..rest).unwrap_or(&[]));
                self.parked = None;
                self.deliver(frame.len, counters)?;
            } else if full {
                // Its buffers hold part of it, which the next frame writes over.
                self.parked = None;
                counters.rx_dropped += 1;
            } else {
                return self.queue.enable_kicks();
            }
            return Ok(true);
        }
        if self.chains.is_empty() {
            return self.queue.enable_kicks();
        }
        if !limiter.is_open() {
            return Ok(false);
        }
        match port.receive(&self.room, &mut self.spill) {
            Ok(len) if (len as u64) < HEADER_LEN => counters.rx_dropped += 1,
            Ok(len) if !self.is_wanted(len as u64, filter) => counters.rx_filtered += 1,
            Ok(len) => {
                let len = len as u64;
                self.last = len;
                limiter.charge(len - HEADER_LEN);
                if len > self.room.len() {
                    self.parked = Some(Frame { len, filled: self.room.len() });
                } else {
                    self.deliver(len, counters)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => {
                counters.note("receive", &error);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes of buffers to have at hand before a frame is taken.
    fn wanted(&self) -> u64 {
        if self.large_frames && self.last > FRAME_USUAL { FRAME_MAX } else { FRAME_USUAL }
    }

    /// Whether the driver's filter lets the frame through that was just received.
    fn is_wanted(&self, len: u64, filter: &Filter) -> bool {
        if filter.wants_all() {
            return true;
        }
        let mut to = [0; 6];
        let here = self.room.read_at(HEADER_LEN, &mut to);
        if let Some(rest) = to.get_mut(here..)
            && !rest.is_empty()
        {
            // The room ended before it did; the rest is where the spill says.
            let skip =
                usize::try_from((HEADER_LEN + here as u64).saturating_sub(self.room.len())).unwrap_or(0);
            rest.iter_mut().zip(self.spill.iter().skip(skip)).for_each(|(to, from)| *to = *from);
        }
        // What is too short for an address is nobody's.
        len >= HEADER_LEN + to.len() as u64 && filter.wants(&to)
    }

    /// Take buffers from the queue until there are enough, or none are left, or one was refused. True: no
    /// more can be taken, whatever the driver adds.
    fn gather(&mut self, counters: &mut Counters) -> Result<bool, GuestFault> {
        let enough = self.parked.map_or_else(|| self.wanted(), |frame| frame.len);
        let most = if self.mergeable { usize::from(self.queue.size()) } else { 1 };
        while self.room.len() < enough {
            if self.chains.len() >= most {
                return Ok(true);
            }
            let Some(chain) = self.queue.pop()? else { break };
            let head = chain.head_index();
            let before = self.room.len();
            self.stray.clear();
            let (_, outcome) = Buffers::gather(chain, &mut self.stray, &mut self.room);
            let len = u32::try_from(self.room.len() - before);
            match len {
                Ok(len @ 1..) if outcome.is_ok() && self.stray.is_empty() => {
                    if self.room.segments() <= PIECES_MAX {
                        self.chains.push_back((head, len));
                        continue;
                    }
                    self.room.truncate(before);
                    if !self.chains.is_empty() {
                        // It comes after what is here has been used.
                        self.queue.undo_pop();
                        return Ok(true);
                    }
                }
                _ => self.room.truncate(before),
            }
            counters.refused += 1;
            self.queue.complete(head, 0)?;
            // A driver that never stops must not keep us here.
            break;
        }
        Ok(false)
    }

    /// Give the driver the frame of `len` bytes that lies at the beginning of `room`.
    fn deliver(&mut self, len: u64, counters: &mut Counters) -> Result<(), GuestFault> {
        let (mut left, mut spent) = (len, 0);
        self.used.clear();
        while left > 0
            && let Some((head, room)) = self.chains.pop_front()
        {
            // Not more than `room`, so it fits.
            let taken = u32::try_from(left.min(u64::from(room))).unwrap_or(room);
            self.used.push((head, taken));
            left -= u64::from(taken);
            spent += u64::from(room);
        }
        let count = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
        self.room.write_at(NUM_BUFFERS, &count.to_le_bytes());
        self.room.advance(spent);
        counters.rx_frames += 1;
        counters.rx_bytes += len - HEADER_LEN;
        self.queue.complete_together(&self.used)
    }
}

/// Enough for the frames of an Ethernet that offloads nothing, in bytes.
const FRAME_USUAL: u64 = 2048;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS: u64 = 10;
