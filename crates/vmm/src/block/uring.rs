//! A raw file, served by io_uring: nothing blocks, and a wake costs one system call for all it brings.
//! One ring serves all queues of a disk, because one thread does: a ring for each would only multiply the
//! system calls. What a ring can be asked for is in [`super::ring`].
//!
//! Invariant: what the kernel may still read or write (a slot's iovecs, and the guest memory that its
//! request keeps mapped) is neither changed nor freed until the slot's completion was seen.

#![allow(unsafe_code, reason = "the kernel is given pointers")]

use std::{
    collections::VecDeque,
    io, mem,
    os::fd::{AsRawFd, RawFd},
    thread,
};

use ec2vmm_devices::virtio::{
    Buffers,
    block::{Backend, Completion, Operation, Request},
};
use ec2vmm_image::Disk;
use io_uring::{cqueue, opcode, squeue, types};

use super::ring::{FILE, Lent};

/// Serves one raw file.
pub struct UringBackend {
    ring: Lent,
    disk: Disk,
    /// Whether the file system has `FALLOC_FL_ZERO_RANGE`, as far as known.
    zero_range: bool,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots that the kernel has not been given.
    waiting: VecDeque<usize>,
    /// How many slots the kernel has, or has in the submission queue.
    with_kernel: usize,
    ended: VecDeque<Completion>,
}

#[derive(Default)]
struct Slot {
    request: Option<Request>,
    iovecs: Iovecs,
    /// Bytes read or written so far.
    done: u64,
}

#[derive(Default)]
struct Iovecs(Vec<libc::iovec>);

// SAFETY: the pointers are into guest memory, which any thread may use, and only the kernel follows them.
unsafe impl Send for Iovecs {}

impl UringBackend {
    /// Serves `disk`, which is whole in the file that `ring` was lent for.
    pub(super) fn new(ring: Lent, disk: Disk) -> Self {
        Self {
            ring,
            disk,
            zero_range: true,
            slots: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            with_kernel: 0,
            ended: VecDeque::new(),
        }
    }

    /// Put waiting requests into the submission queue, as many as there is room for.
    fn fill(&mut self) {
        let most = self.ring.uring.params().cq_entries() as usize;
        while self.with_kernel < most
            && let Some(&index) = self.waiting.front()
        {
            let Some(entry) = self.slots.get_mut(index).and_then(|slot| slot.entry(self.zero_range)) else {
                self.waiting.pop_front();
                continue;
            };
            let entry = entry.user_data(index as u64);
            // SAFETY: the entry points at the slot's iovecs, and these at memory that the slot's request
            // keeps mapped. Neither is touched until `take_completions` sees the slot's completion; when
            // this value is dropped, it waits for that.
            if unsafe { self.ring.uring.submission().push(&entry) }.is_err() {
                return;
            }
            self.waiting.pop_front();
            self.with_kernel += 1;
        }
    }

    /// Move what the kernel has ended to `ended`, or back to `waiting` where something is left of it.
    fn take_completions(&mut self) {
        // One at a time: the queue cannot stay borrowed while requests are put back.
        loop {
            let next = self.ring.uring.completion().next();
            let Some(entry) = next else { return };
            self.with_kernel -= 1;
            self.finish(&entry);
        }
    }

    fn finish(&mut self, entry: &cqueue::Entry) {
        let Ok(index) = usize::try_from(entry.user_data()) else { return };
        let Some(slot) = self.slots.get_mut(index) else { return };
        match slot.judge(entry.result(), &mut self.zero_range) {
            None => self.waiting.push_back(index),
            Some(result) => {
                if let Some(request) = slot.request.take() {
                    slot.iovecs.shrink();
                    self.free.push(index);
                    self.ended.push_back(Completion { request, result });
                }
            }
        }
    }

    /// Hand the submission queue to the kernel, and wait until `want` requests have ended.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            self.fill();
            if self.ring.uring.submission().is_empty() && want == 0 {
                return Ok(());
            }
            match self.ring.uring.submit_and_wait(want) {
                Ok(_) if want > 0 => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn under_way(&self) -> bool {
        self.with_kernel > 0 || !self.waiting.is_empty()
    }
}

/// The kernel is short of memory. What it did not take stays in the submission queue.
fn note(error: &io::Error) {
    log::warn!("io_uring takes no requests just now: {error}");
}

impl Backend for UringBackend {
    fn capacity(&self) -> u64 {
        self.disk.size()
    }

    fn discard_granularity(&self) -> Option<u32> {
        self.disk.can_discard().then_some(BLOCK)
    }

    fn grow(&mut self, bytes: u64) -> io::Result<()> {
        self.disk.grow(bytes)
    }

    fn event(&self) -> RawFd {
        self.ring.event.as_raw_fd()
    }

    fn enqueue(&mut self, request: Request) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        if let Some(slot) = self.slots.get_mut(index) {
            slot.request = Some(request);
            slot.done = 0;
            self.waiting.push_back(index);
        }
    }

    fn submit(&mut self) {
        if let Err(error) = self.enter(0) {
            // The loop comes back here.
            note(&error);
            self.ring.event.call();
        }
    }

    fn completed(&mut self) -> Option<Completion> {
        if self.ended.is_empty() {
            self.take_completions();
            if !self.waiting.is_empty() {
                self.submit();
                self.take_completions();
            }
        }
        self.ended.pop_front()
    }

    fn wait_idle(&mut self) {
        while self.under_way() {
            if let Err(error) = self.enter(1) {
                note(&error);
                thread::yield_now();
            }
            self.take_completions();
        }
    }
}

impl Drop for UringBackend {
    fn drop(&mut self) {
        self.wait_idle();
    }
}

impl Slot {
    /// What the kernel is to do next for this slot's request.
    fn entry(&mut self, zero_range: bool) -> Option<squeue::Entry> {
        let entry = match &self.request.as_ref()?.operation {
            Operation::Read { offset, buffers } => {
                buffers.mark_written(u64::MAX);
                let (iovecs, count) = self.iovecs.point_at(buffers, self.done);
                opcode::Readv::new(FILE, iovecs, count).offset(offset + self.done).build()
            }
            Operation::Write { offset, buffers } => {
                let (iovecs, count) = self.iovecs.point_at(buffers, self.done);
                opcode::Writev::new(FILE, iovecs, count).offset(offset + self.done).build()
            }
            Operation::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            Operation::Discard { offset, len } => {
                opcode::Fallocate::new(FILE, *len).offset(*offset).mode(PUNCH_HOLE).build()
            }
            Operation::WriteZeroes { offset, len, unmap } => {
                // A hole reads as zeroes too, so it serves where ranges cannot be zeroed.
                let mode = if *unmap || !zero_range { PUNCH_HOLE } else { ZERO_RANGE };
                opcode::Fallocate::new(FILE, *len).offset(*offset).mode(mode).build()
            }
        };
        Some(entry)
    }

    /// What the kernel's answer means: the end of the request, or (none) that it goes on.
    fn judge(&mut self, answer: i32, zero_range: &mut bool) -> Option<io::Result<()>> {
        let operation = &self.request.as_ref()?.operation;
        let Ok(moved) = u32::try_from(answer) else {
            let error = io::Error::from_raw_os_error(-answer);
            return match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => None,
                Some(libc::EOPNOTSUPP)
                    if *zero_range && matches!(operation, Operation::WriteZeroes { unmap: false, .. }) =>
                {
                    *zero_range = false;
                    None
                }
                Some(libc::EOPNOTSUPP) => Some(Err(io::ErrorKind::Unsupported.into())),
                _ => Some(Err(error)),
            };
        };
        let (Operation::Read { buffers, .. } | Operation::Write { buffers, .. }) = operation else {
            return Some(Ok(()));
        };
        self.done += u64::from(moved);
        if self.done >= buffers.len() {
            Some(Ok(()))
        } else if moved == 0 {
            Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file has become shorter")))
        } else {
            None
        }
    }
}

impl Iovecs {
    /// Describe what is left of `buffers` after `done` bytes, or a beginning of it.
    fn point_at(&mut self, buffers: &Buffers, done: u64) -> (*const libc::iovec, u32) {
        self.0.clear();
        let mut skip = done;
        for slice in buffers.slices() {
            let here = skip.min(slice.len() as u64);
            skip -= here;
            // Fails only past the slice's end.
            let Some(slice) = usize::try_from(here).ok().and_then(|here| slice.offset(here).ok()) else {
                break;
            };
            if !slice.is_empty() && self.0.len() < IOVECS_MAX {
                let iov_base = slice.ptr_guard_mut().as_ptr().cast();
                self.0.push(libc::iovec { iov_base, iov_len: slice.len() });
            }
        }
        // At most IOVECS_MAX.
        (self.0.as_ptr(), u32::try_from(self.0.len()).unwrap_or(0))
    }

    /// Give back the memory of an unusually long list.
    fn shrink(&mut self) {
        if self.0.capacity() > IOVECS_KEPT {
            drop(mem::take(&mut self.0));
        }
    }
}

/// The kernel's UIO_MAXIOV.
const IOVECS_MAX: usize = 1024;
const IOVECS_KEPT: usize = 32;
/// The block of most file systems, bytes.
const BLOCK: u32 = 4096;
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
