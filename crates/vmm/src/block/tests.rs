use std::{
    fs::File,
    os::{fd::BorrowedFd, unix::fs::FileExt},
    sync::Arc,
};

use ec2vmm_devices::{
    Memory,
    virtio::{
        Buffers,
        block::{Backend, Completion, Operation, Request},
    },
};
use ec2vmm_image::{Disk, Format, Layer, create_overlay};
use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::{Bytes, GuestAddress};

use super::{Access, ImageBackend, Rings, UringBackend, by_uring, open};

const SIZE: u64 = 8 << 20;

struct Bench {
    memory: Arc<Memory>,
    file: File,
}

impl Bench {
    fn new() -> Self {
        let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 20), 3 << 20)];
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        Self { memory: Arc::new(Memory::from_ranges(&ranges).unwrap()), file }
    }

    fn layer(&self, format: Format) -> Layer {
        Layer { file: self.file.try_clone().unwrap(), format }
    }

    fn disk(&self) -> Disk {
        Disk::open(vec![self.layer(Format::Raw)], true).unwrap()
    }

    /// Every engine that there is, each on the same file.
    #[allow(clippy::print_stderr, reason = "whoever runs the tests should know what was not tested")]
    fn engines(&self) -> Vec<(&'static str, Box<dyn Backend>)> {
        let disk = self.disk();
        let threads = Box::new(ImageBackend::new(disk.clone()).unwrap());
        let mut engines: Vec<(&str, Box<dyn Backend>)> = vec![("threads", threads)];
        match uring(&self.file, &disk) {
            Some(uring) => engines.push(("io_uring", Box::new(uring))),
            None => eprintln!("io_uring is not tested, this host has none"),
        }
        engines
    }

    fn buffers(&self, pieces: &[(u64, u32)]) -> Buffers {
        let mut buffers = Buffers::new(Arc::clone(&self.memory));
        for &(address, len) in pieces {
            buffers.push(GuestAddress(address), len).unwrap();
        }
        buffers
    }

    fn guest(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    fn on_file(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.file.read_exact_at(&mut data, offset).unwrap();
        data
    }
}

fn uring(file: &File, disk: &Disk) -> Option<UringBackend> {
    by_uring(file, disk, &Rings::make(1))
}

fn wait(backend: &mut dyn Backend) -> Completion {
    loop {
        if let Some(done) = backend.completed() {
            return done;
        }
        // SAFETY: the backend outlives the borrow and keeps its event open.
        #[allow(unsafe_code, reason = "a device knows descriptors by number")]
        let event = unsafe { BorrowedFd::borrow_raw(backend.event()) };
        poll(&mut [PollFd::new(&event, PollFlags::IN)], None).unwrap();
    }
}

fn run(backend: &mut dyn Backend, operation: Operation) -> std::io::Result<()> {
    backend.enqueue(Request { token: 7, operation });
    backend.submit();
    let done = wait(backend);
    assert_eq!(done.request.token, 7);
    done.result
}

#[test]
fn what_is_written_is_read_back_and_on_the_file() {
    let bench = Bench::new();
    for (name, mut backend) in bench.engines() {
        let data: Vec<u8> = name.bytes().cycle().take(4096).collect();
        bench.memory.write_slice(&data, GuestAddress(0x1000)).unwrap();
        // In three pieces, the second across two regions of memory.
        bench.memory.write_slice(&data[1000..3000], GuestAddress((1 << 20) - 700)).unwrap();
        let pieces = [(0x1000, 1000), ((1 << 20) - 700, 2000), (0x1000 + 3000, 1096)];
        let write = Operation::Write { offset: 512 * 3, buffers: bench.buffers(&pieces) };
        run(&mut *backend, write).unwrap();
        run(&mut *backend, Operation::Flush).unwrap();
        assert_eq!(bench.on_file(512 * 3, 4096), data, "{name}");

        let read = Operation::Read { offset: 512 * 3, buffers: bench.buffers(&[(0x9000, 4096)]) };
        run(&mut *backend, read).unwrap();
        assert_eq!(bench.guest(0x9000, 4096), data, "{name}");
        assert_eq!(backend.capacity(), SIZE);
    }
}

#[test]
fn zeroes_and_discards() {
    let bench = Bench::new();
    for (name, mut backend) in bench.engines() {
        bench.file.write_all_at(&[1; 64 << 10], 0).unwrap();
        run(&mut *backend, Operation::WriteZeroes { offset: 512, len: 1024, unmap: false }).unwrap();
        run(&mut *backend, Operation::WriteZeroes { offset: 8192, len: 4096, unmap: true }).unwrap();
        run(&mut *backend, Operation::Discard { offset: 16384, len: 4096 }).unwrap();
        assert_eq!(bench.on_file(0, 512), [1; 512], "{name}");
        assert_eq!(bench.on_file(512, 1024), [0; 1024], "{name}");
        assert_eq!(bench.on_file(8192, 4096), [0; 4096], "{name}");
        assert_eq!(bench.on_file(12288, 4096), [1; 4096], "{name}");
        assert_eq!(bench.file.metadata().unwrap().len(), SIZE, "{name}");
    }
}

#[test]
fn many_requests_end_once_each() {
    let bench = Bench::new();
    for (name, mut backend) in bench.engines() {
        // More than the ring holds at once.
        for token in 0..1000u16 {
            let at = u64::from(token % 256) * 512;
            let buffers = bench.buffers(&[(at, 512)]);
            let operation = match token % 3 {
                0 => Operation::Write { offset: at, buffers },
                1 => Operation::Read { offset: at, buffers: bench.buffers(&[((2 << 20) + at, 512)]) },
                _ => Operation::Flush,
            };
            backend.enqueue(Request { token, operation });
        }
        backend.submit();
        let mut seen: Vec<u16> = (0..1000)
            .map(|_| {
                let done = wait(&mut *backend);
                done.result.unwrap();
                done.request.token
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>(), "{name}");
        assert!(backend.completed().is_none());
    }
}

#[test]
fn waiting_leaves_nothing_under_way_and_dropping_waits() {
    let bench = Bench::new();
    for (name, mut backend) in bench.engines() {
        for token in 0..300 {
            let buffers = bench.buffers(&[(0, 1 << 19)]);
            backend.enqueue(Request { token, operation: Operation::Write { offset: 0, buffers } });
        }
        backend.wait_idle();
        let ended = std::iter::from_fn(|| backend.completed()).count();
        assert_eq!(ended, 300, "{name}");
        for token in 0..50 {
            let buffers = bench.buffers(&[(0, 1 << 20)]);
            backend.enqueue(Request { token, operation: Operation::Read { offset: 0, buffers } });
        }
        backend.submit();
        drop(backend);
        assert_eq!(Arc::strong_count(&bench.memory), 1, "{name}");
    }
}

#[test]
fn a_file_that_was_cut_short_is_an_error() {
    let bench = Bench::new();
    let Some(mut backend) = uring(&bench.file, &bench.disk()) else { return };
    bench.file.set_len(SIZE / 2).unwrap();
    // The first half of it is there: the request goes on, and then fails.
    let read = Operation::Read { offset: SIZE / 2 - 512, buffers: bench.buffers(&[(0, 1024)]) };
    assert!(run(&mut backend, read).is_err());
}

#[test]
fn errors_of_the_host_come_back() {
    let bench = Bench::new();
    let read_only =
        File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&bench.file))).unwrap();
    let Some(mut backend) = uring(&read_only, &bench.disk()) else { return };
    let write = Operation::Write { offset: 0, buffers: bench.buffers(&[(0, 512)]) };
    assert_eq!(run(&mut backend, write).unwrap_err().raw_os_error(), Some(libc::EBADF));
}

#[test]
fn a_qcow2_overlay_is_served_and_its_flush_reaches_the_file() {
    let bench = Bench::new();
    bench.file.write_all_at(&[3; 4096], 4096).unwrap();
    // With a name: what has none is scratch, which nobody else will read, and is not flushed.
    let named = tempfile::NamedTempFile::new().unwrap();
    let overlay = named.as_file();
    create_overlay(overlay.try_clone().unwrap(), SIZE).unwrap();
    let layers = || {
        let top = Layer { file: overlay.try_clone().unwrap(), format: Format::Qcow2 };
        vec![top, bench.layer(Format::Raw)]
    };
    let mut opened = open(layers(), Access::Kept, &Rings::default()).unwrap();
    let backend = &mut *opened.backend;
    assert_eq!(backend.discard_granularity(), Some(65536));
    bench.memory.write_slice(&[9; 512], GuestAddress(0)).unwrap();
    run(backend, Operation::Write { offset: 4096, buffers: bench.buffers(&[(0, 512)]) }).unwrap();
    run(backend, Operation::Flush).unwrap();

    // Another process would see it now: read the file anew while the first is still open.
    let second = Disk::open(layers(), false).unwrap();
    let mut data = [0; 1024];
    second.read_at(&mut data, 4096).unwrap();
    assert_eq!(data[..512], [9; 512]);
    assert_eq!(data[512..], [3; 512]);
    assert_eq!(bench.on_file(4096, 512), [3; 512], "what lies beneath stays as it was");
}

#[test]
fn a_raw_file_that_ends_within_a_sector_is_served() {
    let bench = Bench::new();
    bench.file.set_len(1000).unwrap();
    let mut opened = open(vec![bench.layer(Format::Raw)], Access::Kept, &Rings::default()).unwrap();
    assert_eq!(opened.backend.capacity(), 1024);
    let read = Operation::Read { offset: 512, buffers: bench.buffers(&[(0, 512)]) };
    run(&mut *opened.backend, read).unwrap();
}

#[test]
fn a_disk_grows_while_requests_are_under_way() {
    let bench = Bench::new();
    for (name, mut backend) in bench.engines() {
        let (old, new) = (backend.capacity(), backend.capacity() + (1 << 20));
        let buffers = bench.buffers(&[(0, 1 << 20)]);
        backend.enqueue(Request { token: 1, operation: Operation::Read { offset: 0, buffers } });
        backend.submit();
        backend.grow(new).unwrap();
        wait(&mut *backend).result.unwrap();
        assert_eq!((backend.capacity(), bench.file.metadata().unwrap().len()), (new, new), "{name}");
        bench.memory.write_slice(&[5; 512], GuestAddress(0)).unwrap();
        let last = new - 512;
        run(&mut *backend, Operation::Write { offset: last, buffers: bench.buffers(&[(0, 512)]) }).unwrap();
        assert_eq!(bench.on_file(last, 512), [5; 512]);
        assert_eq!(bench.on_file(old, 512), [0; 512]);
        for wrong in [old, new + 1] {
            assert!(backend.grow(wrong).is_err(), "{name}: {wrong}");
        }
        bench.file.set_len(SIZE).unwrap();
    }
}

#[test]
fn a_qcow2_disk_grows_and_another_process_sees_it() {
    let bench = Bench::new();
    let named = tempfile::NamedTempFile::new().unwrap();
    create_overlay(named.as_file().try_clone().unwrap(), SIZE).unwrap();
    let layers = || {
        let top = Layer { file: named.as_file().try_clone().unwrap(), format: Format::Qcow2 };
        vec![top, bench.layer(Format::Raw)]
    };
    let mut opened = open(layers(), Access::Kept, &Rings::default()).unwrap();
    // Far enough that the first table has to grow.
    let size = 1 << 40;
    opened.backend.grow(size).unwrap();
    bench.memory.write_slice(&[6; 512], GuestAddress(0)).unwrap();
    let write = Operation::Write { offset: size - 512, buffers: bench.buffers(&[(0, 512)]) };
    run(&mut *opened.backend, write).unwrap();
    run(&mut *opened.backend, Operation::Flush).unwrap();
    assert_eq!(opened.disk.size(), size, "what is read at the next boot");
    let second = Disk::open(layers(), false).unwrap();
    let mut data = [0; 512];
    second.read_at(&mut data, size - 512).unwrap();
    assert_eq!((second.size(), data), (size, [6; 512]));
}

#[test]
fn what_is_read_only_stays_as_it_is() {
    let bench = Bench::new();
    let mut opened = open(vec![bench.layer(Format::Raw)], Access::ReadOnly, &Rings::default()).unwrap();
    assert!(opened.backend.grow(2 * SIZE).is_err());
    assert_eq!(bench.file.metadata().unwrap().len(), SIZE);
}
