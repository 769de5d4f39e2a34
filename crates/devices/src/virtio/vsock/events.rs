//! The event queue (virtio 1.2 section 5.10.6.7): one kind of event, that all streams are gone.

use std::sync::Arc;

use crate::virtio::{Buffers, GuestFault, Position, VirtQueue};

pub(super) struct Events {
    queue: VirtQueue,
    /// The guest is to be told, as soon as it has a buffer for it.
    reset_owed: bool,
}

impl Events {
    pub(super) fn new(queue: VirtQueue) -> Self {
        Self { queue, reset_owed: false }
    }

    pub(super) fn position(&self) -> Position {
        self.queue.position(0)
    }

    pub(super) fn transport_reset(&mut self) {
        self.reset_owed = true;
    }

    /// Tell the guest what it is to be told, if it has a buffer. One that is too small is given back.
    pub(super) fn tell(&mut self, refused: &mut u64) -> Result<(), GuestFault> {
        for _ in 0..self.queue.size() {
            if !self.reset_owed {
                break;
            }
            let Some(chain) = self.queue.pop()? else {
                if self.queue.is_ready() && self.queue.enable_kicks()? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let empty = || Buffers::new(Arc::clone(self.queue.memory()));
            let (mut readable, mut writable) = (empty(), empty());
            let (_, outcome) = Buffers::gather(chain, &mut readable, &mut writable);
            if outcome.is_err() || writable.len() < EVENT_LEN.into() {
                *refused += 1;
                self.queue.complete(head, 0)?;
                continue;
            }
            writable.write_at(0, &TRANSPORT_RESET.to_le_bytes());
            self.queue.complete(head, EVENT_LEN)?;
            self.reset_owed = false;
        }
        self.queue.notify()
    }
}

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: u32 = 0;
const EVENT_LEN: u32 = 4;
