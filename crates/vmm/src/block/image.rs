//! A disk of any format, served by a few threads that may block.
//!
//! Invariant: a request is in exactly one place: staged, queued, with a thread, or ended.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use ec2vmm_devices::{
    Slice,
    virtio::{
        Again,
        block::{Backend, Completion, Operation, Request},
    },
};
use ec2vmm_image::{Disk, Format};

/// Serves an [`ec2vmm_image::Disk`].
pub struct ImageBackend {
    disk: Disk,
    shared: Arc<Shared>,
    staged: Vec<Request>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Something was queued, or the end has come.
    work: Condvar,
    /// The last request under way has ended.
    idle: Condvar,
    /// `ended` has something.
    event: Again,
}

#[derive(Default)]
struct State {
    queued: VecDeque<Request>,
    /// Requests that threads work on.
    active: usize,
    ended: VecDeque<Completion>,
    closing: bool,
}

impl ImageBackend {
    /// Starts the threads that serve `disk`.
    ///
    /// # Errors
    /// The host is out of descriptors or threads.
    pub fn new(disk: Disk) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
            event: Again::new()?,
        });
        // Owned from the first thread on, so that a failure ends those that have started.
        let mut backend = Self { disk, shared, staged: Vec::new(), threads: Vec::new() };
        for number in 0..THREADS {
            let (disk, shared) = (backend.disk.clone(), Arc::clone(&backend.shared));
            let thread = thread::Builder::new().name(format!("disk{number}")).stack_size(STACK);
            backend.threads.push(thread.spawn(move || shared.serve(&disk))?);
        }
        Ok(backend)
    }
}

impl Backend for ImageBackend {
    fn capacity(&self) -> u64 {
        self.disk.size()
    }

    fn discard_granularity(&self) -> Option<u32> {
        let format = self.disk.layers().first().map(|layer| layer.format);
        self.disk.can_discard().then_some(match format {
            Some(Format::Qcow2) => QCOW2_CLUSTER,
            _ => RAW_BLOCK,
        })
    }

    fn grow(&mut self, bytes: u64) -> io::Result<()> {
        // Waits for the requests that are with a thread.
        self.disk.grow(bytes)
    }

    fn event(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    fn enqueue(&mut self, request: Request) {
        self.staged.push(request);
    }

    fn submit(&mut self) {
        let count = self.staged.len();
        if count == 0 {
            return;
        }
        self.shared.lock().queued.extend(self.staged.drain(..));
        if count == 1 {
            self.shared.work.notify_one();
        } else {
            self.shared.work.notify_all();
        }
    }

    fn completed(&mut self) -> Option<Completion> {
        self.shared.lock().ended.pop_front()
    }

    fn wait_idle(&mut self) {
        self.submit();
        let mut state = self.shared.lock();
        while state.active > 0 || !state.queued.is_empty() {
            state = self.shared.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for ImageBackend {
    fn drop(&mut self) {
        self.wait_idle();
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a disk thread has died");
            }
        }
    }
}

impl Shared {
    fn serve(&self, disk: &Disk) {
        let mut state = self.lock();
        loop {
            if let Some(request) = state.queued.pop_front() {
                state.active += 1;
                drop(state);
                let result = perform(disk, &request.operation);
                state = self.lock();
                state.active -= 1;
                if state.ended.is_empty() {
                    self.event.call();
                }
                state.ended.push_back(Completion { request, result });
                if state.active == 0 && state.queued.is_empty() {
                    self.idle.notify_all();
                }
            } else if state.closing {
                return;
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn perform(disk: &Disk, operation: &Operation) -> io::Result<()> {
    match operation {
        Operation::Read { offset, buffers } => {
            let slices: Vec<Slice<'_>> = buffers.slices().collect();
            buffers.mark_written(u64::MAX);
            disk.read_vectored_at(&slices, *offset)
        }
        Operation::Write { offset, buffers } => {
            let slices: Vec<Slice<'_>> = buffers.slices().collect();
            disk.write_vectored_at(&slices, *offset)
        }
        Operation::Flush => disk.flush(),
        Operation::Discard { offset, len } => disk.discard(*offset, *len),
        Operation::WriteZeroes { offset, len, unmap } => disk.write_zeroes(*offset, *len, *unmap),
    }
}

/// Enough to keep a disk busy while one thread waits in a flush.
const THREADS: usize = 3;
/// Each layer of a chain takes a few KiB; only what is touched costs memory.
const STACK: usize = 256 << 10;
/// What `qemu-img` and we make; a file with other clusters only discards in less fitting pieces.
const QCOW2_CLUSTER: u32 = 64 << 10;
const RAW_BLOCK: u32 = 4 << 10;
