//! What a block device needs of the disk behind it: to take requests and to say later how they ended.

use std::{io, os::fd::RawFd};

use crate::virtio::Buffers;

/// A disk that serves requests while the device does other things.
///
/// A backend owns a request, and with it the guest memory that it names, from [`Self::enqueue`] until
/// [`Self::completed`] gives it back. Requests may end in any order.
pub trait Backend: Send {
    /// Size in bytes. Of it the guest sees whole sectors.
    fn capacity(&self) -> u64;

    /// The smallest aligned piece, in bytes, that gives space back when discarded; none if nothing
    /// does. Zeroes are then written by [`Operation::WriteZeroes`] all the same, or not at all.
    fn discard_granularity(&self) -> Option<u32>;

    /// Make the disk larger: what is new reads as zeroes. Requests may be under way.
    ///
    /// # Errors
    /// The disk cannot grow to that.
    fn grow(&mut self, bytes: u64) -> io::Result<()>;

    /// Readable (edge-triggered) whenever [`Self::completed`] has more to give.
    fn event(&self) -> RawFd;

    /// Take a request. It may wait for [`Self::submit`].
    fn enqueue(&mut self, request: Request);

    /// Start all that was enqueued. Never blocks.
    fn submit(&mut self);

    /// A request that has ended, if there is one. Never blocks.
    fn completed(&mut self) -> Option<Completion>;

    /// Block until every request has ended. [`Self::completed`] then gives them all.
    fn wait_idle(&mut self);
}

/// Something to be done with a disk.
#[derive(Debug)]
pub struct Request {
    /// Given back with the completion.
    pub token: u16,
    /// What to do.
    pub operation: Operation,
}

/// What can be done with a disk. Offsets and lengths are in bytes, whole sectors, within the disk.
#[derive(Debug)]
pub enum Operation {
    /// From the disk into guest memory.
    Read {
        /// Where on the disk.
        offset: u64,
        /// To where, and how much.
        buffers: Buffers,
    },
    /// From guest memory to the disk.
    Write {
        /// Where on the disk.
        offset: u64,
        /// From where, and how much.
        buffers: Buffers,
    },
    /// Make every write that has completed so far durable.
    Flush,
    /// The content does not matter any more.
    Discard {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// The content becomes zero.
    WriteZeroes {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
        /// Whether the space may be given back.
        unmap: bool,
    },
}

/// How a request ended.
#[derive(Debug)]
pub struct Completion {
    /// The request.
    pub request: Request,
    /// Whether all of it was done. [`io::ErrorKind::Unsupported`]: this disk never does that.
    pub result: io::Result<()>,
}

impl<B: Backend + ?Sized> Backend for Box<B> {
    fn capacity(&self) -> u64 {
        (**self).capacity()
    }

    fn discard_granularity(&self) -> Option<u32> {
        (**self).discard_granularity()
    }

    fn grow(&mut self, bytes: u64) -> io::Result<()> {
        (**self).grow(bytes)
    }

    fn event(&self) -> RawFd {
        (**self).event()
    }

    fn enqueue(&mut self, request: Request) {
        (**self).enqueue(request);
    }

    fn submit(&mut self) {
        (**self).submit();
    }

    fn completed(&mut self) -> Option<Completion> {
        (**self).completed()
    }

    fn wait_idle(&mut self) {
        (**self).wait_idle();
    }
}
