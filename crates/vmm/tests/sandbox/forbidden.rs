//! What no rule allows ends the process, in each kind of thread.

use std::{
    fs::File,
    os::fd::{IntoRawFd, OwnedFd},
};

use ec2vmm_host::{
    disks::{Disk, OpenLayer},
    sandbox::empty_network,
};
use ec2vmm_vmm::{
    block::ENTRIES,
    sandbox::{self, Thread, rules::RULES},
};
use ec2vmm_vmm_api::{
    Sandbox,
    config::{Format, RateLimit},
};

use io_uring::{opcode, types};

use crate::{
    born::{self, Kept},
    guests, tracer,
};

const THREADS: [Thread; 5] = [Thread::Main, Thread::Vcpu, Thread::Disk, Thread::Pager, Thread::Snapshot];
/// An argument that fits no condition: memory to be executed, a command that nobody knows.
const WRONG: u64 = 0x5a5a_5a5a_5a5a_5a5c;
/// uretprobe and uprobe of Linux 6.11 and later: for code that the kernel itself has put there, so no filter is
/// asked; for whoever else calls them they do nothing, or end the process.
const PROBES: [i64; 2] = [335, 336];
/// Beyond the last that there is.
const NUMBERS: i64 = 480;

/// A process that shuts itself in as a thread of this kind, and does one thing. By which signal it ended.
fn signal_of(thread: Thread, deed: impl FnOnce()) -> Option<i32> {
    // SAFETY: the C library keeps the heap usable in the copy; that does one thing and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        if sandbox::enter(&Sandbox::Filters, None, || ()).is_ok() {
            sandbox::narrow(thread);
            deed();
        }
        // SAFETY: ends this thread, which is the only one.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let mut status = 0;
    // SAFETY: writes one number.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
}

fn call(number: i64, argument: u64) -> i64 {
    // SAFETY: with these arguments no call reaches memory of this process; a filter is to end it before.
    unsafe { libc::syscall(number, argument, argument, argument, argument, argument, argument) }
}

#[test]
fn every_call_without_a_rule_kills() {
    for thread in THREADS {
        for number in (0..NUMBERS).filter(|number| *number != libc::SYS_clone3 && !PROBES.contains(number)) {
            let rules = || RULES.iter().filter(|rule| rule.call == number && rule.threads.contains(&thread));
            if rules().any(|rule| rule.when.is_empty()) {
                continue;
            }
            let signal = signal_of(thread, || {
                call(number, WRONG);
            });
            assert_eq!(
                signal,
                Some(libc::SIGSYS),
                "{thread:?}: call {number} with arguments that fit no rule"
            );
        }
    }
}

#[test]
fn what_cannot_be_looked_at_does_not_exist() {
    for thread in THREADS {
        let signal = signal_of(thread, || {
            let result = call(libc::SYS_clone3, 0);
            let error = std::io::Error::last_os_error().raw_os_error();
            if result != -1 || error != Some(libc::ENOSYS) {
                call(libc::SYS_openat, 0);
            }
        });
        assert_eq!(signal, None, "clone3 is answered, and kills nobody");
    }
}

#[test]
fn other_doors_to_the_kernel_are_closed() {
    const X32: i64 = 0x4000_0000;
    for thread in THREADS {
        let signal = signal_of(thread, || {
            call(X32 | libc::SYS_read, 0);
        });
        assert_eq!(signal, Some(libc::SIGSYS));
        let by_interrupt = signal_of(thread, || {
            // SAFETY: getpid by the door of 32-bit programs; it changes `eax` alone.
            unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _) };
        });
        // On a kernel without such programs it is a fault.
        assert!([Some(libc::SIGSYS), Some(libc::SIGSEGV)].contains(&by_interrupt), "{by_interrupt:?}");
    }
}

/// What a guest that has taken over a thread would try.
fn tries(thread: Thread) -> Vec<(i64, [u64; 6])> {
    let exec = u64::from(libc::PROT_EXEC as u32);
    let mut tries = vec![
        (libc::SYS_openat, [0, 0, 0, 0, 0, 0]),
        (libc::SYS_execve, [0, 0, 0, 0, 0, 0]),
        (libc::SYS_userfaultfd, [0, 0, 0, 0, 0, 0]),
        (libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0, 0, 0]),
        (libc::SYS_connect, [3, 0, 0, 0, 0, 0]),
        (libc::SYS_io_uring_setup, [8, 0, 0, 0, 0, 0]),
        // IORING_REGISTER_SEND_MSG_RING, which takes no ring of ours.
        (libc::SYS_io_uring_register, [u64::MAX, 31, 0, 1, 0, 0]),
        (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
        (libc::SYS_mmap, [0, 4096, exec, 0x22, u64::MAX, 0]),
        (libc::SYS_mprotect, [0, 4096, exec, 0, 0, 0]),
        (libc::SYS_tgkill, [1, 1, libc::SIGKILL as u64, 0, 0, 0]),
        (libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0, 0]),
        (libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0, 0]),
        (libc::SYS_fcntl, [3, libc::F_SETOWN as u64, 1, 0, 0, 0]),
    ];
    if thread != Thread::Main {
        const KVM_CREATE_VM: u64 = 0xae01;
        tries.push((libc::SYS_ioctl, [3, KVM_CREATE_VM, 0, 0, 0, 0]));
        tries.push((libc::SYS_accept4, [3, 0, 0, 0, 0, 0]));
        const UFFDIO_REGISTER: u64 = 0xc020_aa00;
        tries.push((libc::SYS_ioctl, [3, UFFDIO_REGISTER, 0, 0, 0, 0]));
    }
    tries
}

/// The number of a thread of a machine.
fn thread_called(machine: &Kept, name: &str) -> Option<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", machine.pid)).unwrap();
    let mut tasks = tasks.map(|task| task.unwrap().path());
    let task = tasks.find(|task| std::fs::read_to_string(task.join("comm")).unwrap().trim() == name)?;
    task.file_name()?.to_str()?.parse().ok()
}

/// A machine with threads of every kind, all of which wait.
fn machine(network: &OwnedFd) -> Kept {
    let mut parts = born::parts(born::full(network), guests::idle(), None);
    let file = tempfile::tempfile().unwrap();
    // Not of whole sectors: so it is served by threads.
    file.set_len(10_000).unwrap();
    let layers = vec![OpenLayer { file, format: Format::Raw }];
    parts.disks.push(Disk {
        layers,
        read_only: false,
        scratch: true,
        serial: "disk".into(),
        queues: None,
        rate_limit: RateLimit::default(),
    });
    let machine = Kept::start(parts);
    wait_for_threads(&machine, &["ec2vmm-vmm", "vcpu0", "disk0"]);
    machine
}

/// One whose memory is brought in, most of it later.
fn paged_machine(network: &OwnedFd, [state, memory]: &[File; 2]) -> Kept {
    let mut parts = born::parts(born::full(network), guests::idle(), None);
    parts.restore = Some(born::paged(state, memory, None, None));
    let machine = Kept::start(parts);
    wait_for_threads(&machine, &["pager"]);
    machine
}

/// Until each of them is there and waits.
fn wait_for_threads(machine: &Kept, names: &[&str]) {
    for name in names {
        // It is named, and waits, a moment after the event that says that the machine runs.
        born::wait_until(|| thread_called(machine, name).is_some());
        let task = thread_called(machine, name).unwrap();
        let waits = || std::fs::read_to_string(format!("/proc/{}/task/{task}/stat", machine.pid)).unwrap();
        born::wait_until(|| waits().contains(") S "));
    }
}

#[test]
fn threads_of_a_live_machine_are_killed_for_what_they_may_not_do() {
    if !born::is_possible() {
        return;
    }
    let network = empty_network().unwrap();
    let files = born::snapshot(&network);
    let mut kinds = vec![(Thread::Main, "ec2vmm-vmm"), (Thread::Vcpu, "vcpu0"), (Thread::Disk, "disk0")];
    if born::has_userfaultfd() {
        kinds.push((Thread::Pager, "pager"));
    }
    for (thread, name) in kinds {
        let machine = || match thread {
            Thread::Pager => paged_machine(&network, &files),
            _ => machine(&network),
        };
        // What is allowed comes back: it is not the tracing that kills.
        let control = machine();
        let answer = tracer::make_call(thread_called(&control, name).unwrap(), libc::SYS_getpid, [0; 6]);
        assert_eq!(answer, Ok(1), "{name}");
        for (number, arguments) in tries(thread) {
            let machine = machine();
            let answer = tracer::make_call(thread_called(&machine, name).unwrap(), number, arguments);
            assert_eq!(answer, Err(libc::SIGSYS), "{name}: call {number} {arguments:?}");
            // Not the thread alone.
            born::wait_until(|| machine.is_dead());
        }
    }
}

#[test]
fn the_call_that_killed_is_named() {
    if !born::is_possible() {
        return;
    }
    let network = empty_network().unwrap();
    let machine = machine(&network);
    let answer =
        tracer::make_call(thread_called(&machine, "vcpu0").unwrap(), libc::SYS_socket, [2, 1, 0, 0, 0, 0]);
    assert_eq!(answer, Err(libc::SIGSYS));
    assert_eq!(machine.signal(), Some(libc::SIGSYS));
    let failure = machine.violation().unwrap();
    if failure.message.contains("it made a system call,") {
        return eprintln!("SKIPPED: the kernel's log does not tell it here");
    }
    assert_eq!(
        failure.message,
        "the machine process was killed by its sandbox: it made the system call socket (41) in the thread vcpu0, \
         which is not allowed"
    );
}

/// The first ring of a machine, as the kernel has it for the machine: taken from outside, where more is allowed.
fn ring_of(machine: &Kept) -> Option<io_uring::IoUring> {
    let numbers = std::fs::read_dir(format!("/proc/{}/fd", machine.pid)).unwrap();
    let ring = numbers.map(|number| number.unwrap().path()).find(|number| {
        std::fs::read_link(number).is_ok_and(|what| what.to_string_lossy() == "anon_inode:[io_uring]")
    })?;
    let number = ring.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let taken =
        rustix::process::pidfd_getfd(&machine.pidfd, number, rustix::process::PidfdGetfdFlags::empty());
    // It is laid out as any of its size.
    let alike: io_uring::IoUring = io_uring::IoUring::builder().setup_r_disabled().build(ENTRIES).unwrap();
    // SAFETY: it is a ring, which nobody else holds by this number.
    let ring = unsafe { io_uring::IoUring::from_fd(taken.unwrap().into_raw_fd(), alike.params().clone()) };
    Some(ring.unwrap())
}

#[test]
fn the_rings_of_a_live_machine_do_nothing_but_serve_disks() {
    if !born::is_possible() {
        return;
    }
    let network = empty_network().unwrap();
    let machine = machine(&network);
    let Some(mut ring) = ring_of(&machine) else {
        return eprintln!("SKIPPED: no io_uring");
    };
    let refused = ring.submitter().register_files(&[0]).unwrap_err().raw_os_error();
    assert_eq!(refused, Some(libc::EACCES));
    let entries = [
        opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build(),
        opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
        opcode::Nop::new().build(),
        // Allowed, but not on a descriptor.
        opcode::Fsync::new(types::Fd(0)).build(),
    ];
    for entry in entries {
        // SAFETY: the one path is a constant.
        unsafe { ring.submission().push(&entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        assert_eq!(ring.completion().next().unwrap().result(), -libc::EACCES, "{entry:?}");
    }
}
