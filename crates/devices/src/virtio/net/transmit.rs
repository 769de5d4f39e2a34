//! From the driver to the port.

use std::{io, sync::Arc};

use super::{Counters, FRAME_MAX, FRAMES_PER_WAKE, HEADER_LEN, PIECES_MAX, Port};
use crate::{
    rate_limit::RateLimiter,
    virtio::{Buffers, GuestFault, Position, VirtQueue},
};

pub(super) struct Transmitter {
    queue: VirtQueue,
    frame: Buffers,
    /// What a driver lets us write, though there is nothing to.
    stray: Buffers,
}

impl Transmitter {
    pub(super) fn new(queue: VirtQueue) -> Self {
        let frame = Buffers::new(Arc::clone(queue.memory()));
        let stray = Buffers::new(Arc::clone(queue.memory()));
        Self { queue, frame, stray }
    }

    /// Where it stands.
    pub(super) fn position(&self) -> Position {
        self.queue.position(0)
    }

    /// Move frames until the driver has no more, the port takes no more, the limiter has shut, or it is
    /// others' turn: then it returns true.
    pub(super) fn run(
        &mut self,
        port: &mut impl Port,
        limiter: &mut RateLimiter,
        counters: &mut Counters,
    ) -> Result<bool, GuestFault> {
        if !self.queue.is_ready() {
            return Ok(false);
        }
        self.queue.disable_kicks()?;
        let mut more = true;
        for _ in 0..FRAMES_PER_WAKE {
            if !self.step(port, limiter, counters)? {
                more = false;
                break;
            }
        }
        self.queue.notify()?;
        Ok(more)
    }

    /// One frame. False: there is none, or the port takes none now, or it may not pass yet.
    fn step(
        &mut self,
        port: &mut impl Port,
        limiter: &mut RateLimiter,
        counters: &mut Counters,
    ) -> Result<bool, GuestFault> {
        let Some(chain) = self.queue.pop()? else { return self.queue.enable_kicks() };
        if !limiter.is_open() {
            self.queue.undo_pop();
            return Ok(false);
        }
        let head = chain.head_index();
        self.frame.clear();
        self.stray.clear();
        let (_, outcome) = Buffers::gather(chain, &mut self.frame, &mut self.stray);
        let sane = (FRAME_MIN..=FRAME_MAX).contains(&self.frame.len()) && self.frame.segments() <= PIECES_MAX;
        if outcome.is_err() || !sane {
            counters.refused += 1;
        } else {
            match port.send(&self.frame) {
                Ok(()) => {
                    limiter.charge(self.frame.len() - HEADER_LEN);
                    counters.tx_frames += 1;
                    counters.tx_bytes += self.frame.len() - HEADER_LEN;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.queue.undo_pop();
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.queue.undo_pop();
                    return Ok(true);
                }
                Err(error) => {
                    counters.tx_dropped += 1;
                    counters.note("send", &error);
                }
            }
        }
        self.queue.complete(head, 0)?;
        Ok(true)
    }
}

/// Header and the addresses of an Ethernet frame.
const FRAME_MIN: u64 = HEADER_LEN + 14;
