//! A device that stops before it is done, so that the rest of the machine gets its turn, and goes on
//! when the loop comes round again. A driver that never stops adding buffers thus hangs nobody.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{GuestFault, VirtQueue, queue::Chain};
use crate::rate_limit::RateLimiter;

/// A descriptor by which a device (or a handle to it) wakes it. One of [`super::VirtioDevice::sources`].
#[derive(Debug)]
pub struct Again(EventFd);

impl Again {
    /// A new one, silent.
    ///
    /// # Errors
    /// The host is out of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// Wake the device with the [`super::Wake::Source`] that this is.
    pub fn call(&self) {
        // The only failure is a counter that is full: then the device is about to be woken anyway.
        let _ = self.0.write(1);
    }

    /// Takes the calls so far back. With an edge-triggered loop there is no need to.
    pub fn clear(&self) {
        // Fails when there was none.
        let _ = self.0.read();
    }

    /// Serves a queue's chains until there are none left, or until as many are served as the queue
    /// holds: then the device is woken again. `serve` returns how many bytes it wrote.
    ///
    /// # Errors
    /// The rings are broken, or what `serve` says.
    pub fn serve(
        &self,
        queue: &mut VirtQueue,
        serve: impl FnMut(Chain) -> Result<u32, GuestFault>,
    ) -> Result<(), GuestFault> {
        self.serve_limited(queue, None, serve)
    }

    /// As [`Self::serve`], but only while `limiter` is open, which is charged for what was written. The
    /// device has to serve again when the limiter's descriptor is ready.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub fn serve_limited(
        &self,
        queue: &mut VirtQueue,
        limiter: Option<&mut RateLimiter>,
        mut serve: impl FnMut(Chain) -> Result<u32, GuestFault>,
    ) -> Result<(), GuestFault> {
        self.serve_some(queue, limiter, u32::MAX, |chain| {
            serve(chain).map(|written| Served { written, work: 0 })
        })
    }

    /// As [`Self::serve`], for chains of which one can be much more work than another: also only until `serve`
    /// has done at least `most` of it.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub fn serve_work(
        &self,
        queue: &mut VirtQueue,
        most: u32,
        serve: impl FnMut(Chain) -> Result<Served, GuestFault>,
    ) -> Result<(), GuestFault> {
        self.serve_some(queue, None, most, serve)
    }

    fn serve_some(
        &self,
        queue: &mut VirtQueue,
        mut limiter: Option<&mut RateLimiter>,
        most: u32,
        mut serve: impl FnMut(Chain) -> Result<Served, GuestFault>,
    ) -> Result<(), GuestFault> {
        if !queue.is_ready() {
            return Ok(());
        }
        queue.disable_kicks()?;
        let (mut chains, mut left) = (queue.size(), most);
        while chains > 0 && left > 0 {
            let Some(chain) = queue.pop()? else {
                if queue.enable_kicks()? {
                    continue;
                }
                return queue.notify();
            };
            if !limiter.as_mut().is_none_or(|limiter| limiter.is_open()) {
                queue.undo_pop();
                return queue.notify();
            }
            chains -= 1;
            let head = chain.head_index();
            let Served { written, work } = serve(chain)?;
            left = left.saturating_sub(work);
            if let Some(limiter) = &mut limiter {
                limiter.charge(written.into());
            }
            queue.complete(head, written)?;
        }
        self.call();
        queue.notify()
    }
}

/// What a chain came to.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Bytes that were written to it.
    pub written: u32,
    /// How much work it was, in the device's own measure.
    pub work: u32,
}

#[cfg(test)]
impl Again {
    /// Whether the device is to be woken; takes it back.
    pub(crate) fn is_called(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsRawFd for Again {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::{Again, Served};
    use crate::virtio::testing::{Buffer, Guest};

    #[test]
    fn a_driver_that_adds_all_the_time_is_served_a_share() {
        for (work, served) in [(0, 8), (1, 8), (4, 3), (100, 1)] {
            let mut guest = Guest::new(&[8]);
            let mut queue = guest.queues().remove(0);
            let head = guest.ring(0).add(&[Buffer::writable(0x1000, 1)]);
            (1..8).for_each(|_| guest.ring(0).make_available(head));
            let (again, mut count) = (Again::new().unwrap(), 0);
            let serve = |_| {
                count += 1;
                guest.ring(0).make_available(head);
                Ok(Served { written: 0, work })
            };
            again.serve_work(&mut queue, 10, serve).unwrap();
            assert_eq!(count, served, "chains of {work} each");
            assert!(again.is_called());
        }
    }
}
