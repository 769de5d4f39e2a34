//! Parts of a machine process, each in a process that shuts itself in as the machine does: the backends of its
//! devices, KVM as drivers would have it used, and what goes wrong.

mod tap;

use std::{
    fs::File,
    io::{PipeReader, PipeWriter, Read, Write},
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use ec2vmm_devices::{
    Memory,
    pci::MsiMessage,
    virtio::{
        Buffers, VirtioDevice, Wake,
        block::{Backend, Operation, Request},
        rng::Entropy,
        testing::{Buffer, Guest},
        vsock::Vsock,
    },
};
use ec2vmm_image::{Disk, Format, Layer, create_overlay};
use ec2vmm_vmm::{
    block::{self, Access, ImageBackend, Rings},
    entropy::KernelEntropy,
    outlet::Outlet,
    report::Report,
    sandbox::{self, Thread},
    userfault::{Put, Span, Userfault},
    vm::{InterruptRoutes, Vm},
};
use ec2vmm_vmm_api::{Failure, FailureKind, Sandbox};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch};
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use crate::{coverage::Coverage, tracer};

pub(super) fn run_all(coverage: &mut Coverage) {
    for format in [Format::Raw, Format::Qcow2] {
        for by_threads in [false, true] {
            let part = |(file, rings)| disk(file, format, by_threads, &rings);
            watch(coverage, Thread::Main, || (tempfile::tempfile().unwrap(), Rings::make(1)), part);
        }
    }
    watch(coverage, Thread::Main, vsock, guest_and_host_talk);
    watch(coverage, Thread::Main, || (), |()| KernelEntropy.fill(&mut [0; 100]).unwrap());
    watch(coverage, Thread::Main, || std::io::pipe().unwrap(), a_reader_who_does_not_read);
    watch(coverage, Thread::Main, tap::make, tap::frames);
    watch(coverage, Thread::Pager, userfault, |parts| put_pages(&parts));
    watch(coverage, Thread::Pager, || tempfile::tempfile().unwrap(), last_words);
    watch(coverage, Thread::Snapshot, || (), |()| wait_for_the_pager());
    for thread in [Thread::Main, Thread::Vcpu] {
        watch(coverage, thread, vm, |vm| interrupts_and_doorbells(&vm));
    }
    for thread in [Thread::Main, Thread::Vcpu, Thread::Disk, Thread::Pager, Thread::Snapshot] {
        watch(coverage, thread, || (), |()| grow());
        watch(coverage, thread, || (), |()| read_the_clock());
        // What channels do where another thread is in the middle of something, and io_uring where the kernel
        // has no memory just now.
        watch(coverage, thread, || (), |()| std::thread::yield_now());
        let status = follow(coverage, thread, || (), |()| std::process::abort());
        assert_eq!(libc::WTERMSIG(status), libc::SIGABRT);
    }
}

/// Does one thing in a process that shuts itself in as a thread of this kind, and watches it. What it needs
/// from outside it makes first.
fn watch<T>(coverage: &mut Coverage, thread: Thread, prepare: impl FnOnce() -> T, part: impl FnOnce(T)) {
    let status = follow(coverage, thread, prepare, part);
    assert_eq!(status, 0, "it does not end well; refused: {:?}", coverage.refused);
}

/// The same, to any end.
fn follow<T>(
    coverage: &mut Coverage,
    thread: Thread,
    prepare: impl FnOnce() -> T,
    part: impl FnOnce(T),
) -> i32 {
    let (mut begun, mut begin) = std::io::pipe().unwrap();
    // SAFETY: the C library keeps the heap usable in the copy, which ends below.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        begun.read_exact(&mut [0]).unwrap();
        let prepared = prepare();
        sandbox::enter(&Sandbox::Filters, None, || ()).unwrap();
        // By its name the tracer knows which filter follows.
        let name = match thread {
            Thread::Main => c"main",
            Thread::Vcpu => c"vcpu0",
            Thread::Disk => c"disk0",
            Thread::Pager => c"pager",
            Thread::Snapshot => c"snapshot",
        };
        rustix::thread::set_name(name).unwrap();
        sandbox::narrow(thread);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| part(prepared)));
        // SAFETY: ends this thread, which is the last.
        unsafe { libc::syscall(libc::SYS_exit, i32::from(done.is_err())) };
    }
    tracer::follow(child, || begin.write_all(b"x").unwrap(), |call| coverage.see(call))
}

fn disk(file: File, format: Format, by_threads: bool, rings: &Rings) {
    const SIZE: u64 = 8 << 20;
    match format {
        // By threads also one that ends within a sector.
        Format::Raw => file.set_len(if by_threads { SIZE - 100 } else { SIZE }).unwrap(),
        Format::Qcow2 => create_overlay(file.try_clone().unwrap(), SIZE).unwrap(),
    }
    let layers = vec![Layer { file, format }];
    let mut open = block::open(layers, Access::Kept, rings).unwrap();
    if by_threads {
        open.backend = Box::new(ImageBackend::new(open.disk.clone()).unwrap());
    }
    let memory: Arc<Memory> = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
    let buffers = |address, len| {
        let mut buffers = Buffers::new(Arc::clone(&memory));
        buffers.push(GuestAddress(address), len).unwrap();
        buffers
    };
    let two = || {
        let mut two = buffers(0, 4096);
        two.push(GuestAddress(0x10000), 8192).unwrap();
        two
    };
    let operations = [
        Operation::Write { offset: 0, buffers: buffers(0, 65536) },
        Operation::Write { offset: 512, buffers: two() },
        Operation::Flush,
        Operation::Read { offset: 0, buffers: two() },
        Operation::Read { offset: 4096, buffers: buffers(0, 4096) },
        Operation::WriteZeroes { offset: 512, len: 1024, unmap: false },
        Operation::WriteZeroes { offset: 0, len: 65536, unmap: true },
        Operation::WriteZeroes { offset: SIZE - 4096, len: 4096, unmap: true },
        Operation::WriteZeroes { offset: SIZE - 4096, len: 4096, unmap: false },
        Operation::Discard { offset: 65536, len: 65536 },
        Operation::Flush,
    ];
    for (token, operation) in (0..).zip(operations) {
        open.backend.enqueue(Request { token, operation });
        open.backend.submit();
        open.backend.wait_idle();
        assert!(open.backend.completed().unwrap().result.is_ok(), "request {token}");
    }
    // As it is read for the boot.
    let mut bytes = vec![0; 100_000];
    let (one, two) = bytes.split_at_mut(50_000);
    read_at(&open.disk, one, 0);
    read_at(&open.disk, two, 70_000);
}

fn read_at(disk: &Disk, bytes: &mut [u8], offset: u64) {
    disk.read_vectored_at(&[VolatileSlice::from(bytes)], offset).unwrap();
}

/// A stream from the host to the guest, in which both say something and the guest then says no more.
fn guest_and_host_talk((mut device, mut host): (Vsock, UnixStream)) {
    const RX: usize = 0;
    const TX: usize = 1;
    let [request, response, shutdown, rw] = [1_u16, 2, 4, 5];
    let mut guest = Guest::new(&[128, 128, 128]);
    device.activate(0, guest.queues()).unwrap();
    let rooms: Vec<Buffer> = (0..8).map(|_| guest.room(4096)).collect();
    for room in &rooms {
        guest.ring(RX).add(&[*room]);
    }
    host.write_all(b"CONNECT 80\n").unwrap();
    device.wake(Wake::Source(0)).unwrap();
    let heard = guest.bytes(rooms[0]);
    assert_eq!(u16::from_le_bytes(heard[30..32].try_into().unwrap()), request);
    let port = u32::from_le_bytes(heard[16..20].try_into().unwrap());
    for (operation, flags, data) in [(response, 0, &b""[..]), (rw, 0, b"hello"), (shutdown, 2, b"")] {
        // VIRTIO 1.2, 5.10.6: who, to whom, how much, of which kind, what, and how much may come back.
        let mut packet = [5_u64, 2].map(u64::to_le_bytes).concat();
        packet.extend([80, port, data.len() as u32].map(u32::to_le_bytes).concat());
        packet.extend([1, operation].map(u16::to_le_bytes).concat());
        packet.extend([flags, 1 << 16, 0].map(u32::to_le_bytes).concat());
        packet.extend(data);
        let packet = guest.buffer(&packet);
        guest.ring(TX).add(&[packet]);
        device.wake(Wake::Source(0)).unwrap();
    }
    let mut said = String::new();
    host.read_to_string(&mut said).unwrap();
    assert!(said.ends_with("hello"), "{said}");
    host.write_all(b"bye").unwrap();
    device.wake(Wake::Source(0)).unwrap();
}

fn vsock() -> (Vsock, UnixStream) {
    let address = SocketAddr::from_abstract_name(format!("sandbox-test-{}", std::process::id())).unwrap();
    let device = Vsock::new(5, UnixListener::bind_addr(&address).unwrap()).unwrap();
    (device, UnixStream::connect_addr(&address).unwrap())
}

fn a_reader_who_does_not_read((_reader, writer): (PipeReader, PipeWriter)) {
    let mut outlet = Outlet::new(writer.into(), 1 << 20).unwrap();
    outlet.put(&vec![b'x'; 1 << 19]).unwrap();
    assert!(outlet.finish(Instant::now() + Duration::from_millis(1)).is_err());
}

/// The heap in every way: small pieces, large ones, one that grows.
fn grow() {
    let small: Vec<Box<[u8; 1000]>> = (0..2000).map(|_| Box::new([1; 1000])).collect();
    let mut large = vec![1_u8; 1 << 20];
    large.reserve_exact(8 << 20);
    std::hint::black_box((&small, &large));
}

/// A host whose clock a program cannot read without asking the kernel, as it is in some virtual machines.
fn read_the_clock() {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one time.
    assert_eq!(unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut time) }, 0);
}

/// One page of memory, and what it is brought in by.
fn userfault() -> (Userfault, Arc<Memory>, Span) {
    let device = ec2vmm_host::userfaultfd::open().unwrap();
    let userfault = Userfault::new(device.as_ref().map(AsFd::as_fd)).unwrap();
    let memory = ec2vmm_vmm::memory::map(64).unwrap();
    let address = memory.get_host_address(GuestAddress(0)).unwrap();
    let span = Span { start: address as u64, len: 2 * 4096 };
    userfault.register(span).unwrap();
    (userfault, memory, span)
}

/// Whoever is told by the kernel that a page is there already wakes those who may wait for it.
fn put_pages((userfault, _memory, span): &(Userfault, Arc<Memory>, Span)) {
    let first = Span { len: 4096, ..*span };
    assert_eq!(userfault.zero(first).unwrap(), Put::Some(4096));
    assert_eq!(userfault.zero(first).unwrap(), Put::AlreadyThere);
    assert_eq!(userfault.copy(span.start + 4096, &[1; 4096]).unwrap(), Put::Some(4096));
    userfault.wake(first).unwrap();
}

/// Where memory is lost and the event loop does not hear of it.
fn last_words(record: File) {
    let report = Report::new(Instant::now());
    report.record_in(record.into());
    report.failed(Failure { kind: FailureKind::BrokenSnapshot, message: String::new(), hint: None });
    report.finish();
    std::process::exit(0);
}

/// One who comes too late to see it at work.
fn wait_for_the_pager() {
    let nothing = Mutex::new(());
    let lock = nothing.lock().unwrap();
    drop(Condvar::new().wait_timeout(lock, Duration::from_millis(1)).unwrap());
}

fn vm() -> Vm {
    let memory = ec2vmm_vmm::memory::map(64).unwrap();
    Vm::new(&Kvm::new().unwrap(), memory).unwrap()
}

/// What a driver has a vCPU's thread do: vectors are routed and masked, a BAR is moved.
fn interrupts_and_doorbells(vm: &Vm) {
    let routes = InterruptRoutes::new(Arc::clone(vm.fd()));
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    routes.set(30, MsiMessage { address: 0xfee0_0000, data: 0x41 }).unwrap();
    routes.connect(&event, 30).unwrap();
    routes.disconnect(&event, 30).unwrap();
    for address in [0xd000_0000, 0xd100_0000].map(IoEventAddress::Mmio) {
        vm.fd().register_ioevent(&event, &address, NoDatamatch).unwrap();
        vm.fd().unregister_ioevent(&event, &address, NoDatamatch).unwrap();
    }
}
