//! What this process may ask of the kernel once it is shut in: data, and why.
//!
//! A rule allows one system call, under conditions on its arguments, to kinds of threads. Whatever has no
//! rule ends the process. Rules of one call are alternatives. Each rule is exercised by
//! `tests/sandbox/coverage.rs`: one that nothing needs any more fails the test, and is to be deleted.
//!
//! | kind of thread | filters that hold for it |
//! |---|---|
//! | main: reads the disk's kernel, makes the VM and its threads, runs the event loop | `Main` |
//! | `vcpuN` | `Main`, and from its first line on `Vcpu` |
//! | `diskN`: a disk that is served by threads | `Main`, and from its first line on `Disk` |
//! | `pager`: brings a snapshot's memory in | `Main`, and from its first line on `Pager` |
//! | `snapshot`: writes one | `Main`, and from its first line on `Snapshot` |
//!
//! So what a vCPU does needs a rule for both. Who makes the process do something new adds a rule to the section
//! that it belongs to, and what uses it to the scenarios of that test: without the rule it names the call and
//! its arguments, without the scenario the rule.
//!
//! Not here, and so impossible: opening a path, executing, making a process, a socket, a connection or a ring,
//! memory that can be executed, signals to others, tracing, namespaces, mounts, keys, BPF, performance counters,
//! changing ids or limits.

use self::{
    Thread::{Disk, Main, Pager, Snapshot, Vcpu},
    When::{Int, Lacks, Long},
};
use crate::userfault::{UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_WAKE, UFFDIO_ZEROPAGE};

/// A kind of thread.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Thread {
    /// The first one, with the event loop; also what holds for all threads that come from it.
    Main,
    /// Runs a vCPU.
    Vcpu,
    /// Serves a disk.
    Disk,
    /// Brings guest memory in.
    Pager,
    /// Writes a snapshot's files.
    Snapshot,
}

/// A condition on one argument, counted from 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum When {
    /// It is this number of 32 bits; the kernel looks at no more of it.
    Int(u8, u32),
    /// It is this number of 64 bits.
    Long(u8, u64),
    /// It has none of these bits.
    Lacks(u8, u64),
}

/// One thing that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its number.
    pub call: i64,
    /// Its name.
    pub name: &'static str,
    /// Whose filters allow it.
    pub threads: &'static [Thread],
    /// All of these hold.
    pub when: &'static [When],
    /// What needs it.
    pub why: &'static str,
}

impl When {
    /// Whether it holds for these arguments.
    pub fn holds(self, arguments: &[u64; 6]) -> bool {
        let argument = |at: u8| arguments.get(usize::from(at)).copied().unwrap_or_default();
        match self {
            Int(at, value) => argument(at) & u64::from(u32::MAX) == u64::from(value),
            Long(at, value) => argument(at) == value,
            Lacks(at, bits) => argument(at) & bits == 0,
        }
    }
}

impl Rule {
    /// Whether it allows this call.
    pub fn allows(&self, call: i64, arguments: &[u64; 6]) -> bool {
        self.call == call && self.when.iter().all(|when| when.holds(arguments))
    }
}

macro_rules! rules {
    ($($call:ident $([$($when:expr),+])? by $($thread:ident)+: $why:literal;)+) => {
        /// Everything that is allowed.
        pub const RULES: &[Rule] = &[$(Rule {
            call: libc::$call,
            name: stringify!($call),
            threads: &[$($thread),+],
            when: &[$($($when),+)?],
            why: $why,
        }),+];
    };
}

rules! {
    // Reading and writing what is open.
    SYS_read by Main Vcpu Pager: "eventfds, timers, sockets; what the kernel is read from; an ejected device's interrupts";
    SYS_write by Main Vcpu Disk Pager Snapshot: "eventfds, sockets, the log";
    SYS_readv by Main: "frames from a tap, requests from a socket";
    SYS_writev by Main: "frames to a tap, answers to a socket";
    SYS_pread64 by Main Pager: "what a console's file holds, the kernel that was given, a snapshot";
    SYS_pwrite64 by Main Pager Snapshot: "the console's log and the record of events, a snapshot";
    SYS_preadv by Main Disk: "a disk's file, for the kernel on it and for the guest";
    SYS_pwritev by Main Disk: "a disk's file";
    SYS_fadvise64 by Main Pager: "what of a snapshot's memory will be read soon";
    SYS_lseek by Main: "the size of a file; the kernel that was given";
    SYS_statx [Int(2, EMPTY_PATH)] by Main: "the size of an open file; of paths nothing is asked";
    SYS_fstat by Main: "what kind of file came for a disk that is attached";
    SYS_fstatfs by Main: "whether a disk's file can have holes";
    SYS_fallocate by Main Disk: "discards and writes of zeroes; room for the console's log";
    SYS_ftruncate by Main Disk Snapshot: "the console's log and files of a snapshot are made empty; a disk's file grows to whole sectors";
    SYS_fsync by Main Disk: "the guest's flushes; the end of a qcow2 file's use";
    SYS_close by Main Vcpu Pager Snapshot: "connections that end; what a reboot lets go of";
    SYS_fcntl [Int(1, F_GETFD)] by Main Vcpu Pager Snapshot: "debug builds look whether what they close is open";
    SYS_fcntl [Int(1, F_GETFL)] by Main: "before a descriptor is made to not wait";
    SYS_fcntl [Int(1, F_SETFL)] by Main: "a descriptor is made to not wait";
    SYS_fcntl [Int(1, F_DUPFD_CLOEXEC)] by Main: "a disk's file is held by the device and for the boot";
    SYS_io_uring_register [Int(1, REGISTER_FILES_UPDATE)] by Main: "a ring gets the file of a raw disk, or loses it";
    SYS_io_uring_enter [Lacks(3, !ENTER_GETEVENTS)] by Main: "requests of the guest to a raw disk";

    // Waiting, and telling others.
    SYS_epoll_create1 by Main: "the event loop, and those within sockets";
    SYS_epoll_ctl by Main: "what the event loop waits for";
    SYS_epoll_wait by Main: "the event loop waits";
    SYS_ppoll by Main Pager: "the last event and the last output wait a little for a slow reader";
    SYS_eventfd2 by Main Vcpu: "kicks and interrupts";
    SYS_timerfd_create by Main: "what a device does later";
    SYS_timerfd_settime by Main: "what a device does later";
    SYS_futex by Main Vcpu Disk Pager Snapshot: "locks, and the end of threads";
    SYS_sched_yield by Main Vcpu Disk Pager Snapshot: "a channel between threads at which two meet; a ring that the kernel has no memory for just now";

    // Sockets that were inherited, and connections to them. There is no `socket` and no `connect`.
    SYS_accept4 by Main: "who comes by the control socket, the console's and the vsock's";
    SYS_recvmsg by Main: "a request to the control socket, with descriptors of what is attached";
    SYS_recvfrom by Main: "from a connection";
    SYS_sendto by Main: "to a connection";
    SYS_shutdown by Main: "half of a vsock stream ends";

    // Memory, never executable.
    SYS_mmap [Lacks(2, PROT_EXEC)] by Main Vcpu Disk Pager Snapshot: "the heap, guest memory, threads' stacks, rings";
    SYS_mprotect [Lacks(2, PROT_EXEC)] by Main: "the guard page of a thread's stack";
    SYS_munmap by Main Vcpu Disk Pager Snapshot: "memory is given back";
    SYS_mremap by Main Vcpu Disk Pager Snapshot: "a large piece of the heap grows";
    SYS_madvise by Main Vcpu Disk Pager Snapshot: "huge pages; guest memory that the balloon gives back; ended stacks";
    SYS_brk by Main Vcpu Disk Pager Snapshot: "the heap of the first thread";
    SYS_getrandom by Main: "the guest's entropy; keys of hash tables";

    // Threads.
    SYS_clone [Long(0, THREAD)] by Main: "a thread of this process, and nothing else";
    SYS_sched_getaffinity by Main: "the event loop looks longer where there are several processors; the C library, \
        where a thread asks for the bounds of its stack";
    SYS_set_robust_list by Main: "the C library, at the beginning of a thread";
    SYS_rseq by Main: "the C library, at the beginning of a thread";
    SYS_prctl [Int(0, PR_SET_NAME)] by Main: "a thread says what it is called";
    SYS_prctl [Int(0, PR_SET_NO_NEW_PRIVS)] by Main: "a thread is about to narrow its filter";
    SYS_seccomp [Int(0, SET_MODE_FILTER)] by Main: "a thread narrows its filter";
    SYS_sigaltstack by Main Vcpu Disk Pager Snapshot: "where a stack that has overflown is told of";
    SYS_rt_sigprocmask by Main Vcpu Disk Pager Snapshot: "the C library, at the beginning and end of a thread";
    SYS_rt_sigaction by Main: "the signal that makes a vCPU leave the guest";
    SYS_rt_sigreturn by Main Vcpu: "the end of a signal's handler";
    SYS_tgkill [Int(2, KICK)] by Main: "a vCPU leaves the guest";
    SYS_tgkill [Int(2, SIGABRT)] by Main Vcpu Disk Pager Snapshot: "a panic ends the process and says so";
    SYS_getpid by Main Vcpu Disk Pager Snapshot: "the C library, before it sends a thread a signal";
    SYS_gettid by Main Vcpu Disk Pager Snapshot: "the C library, before it sends a thread a signal";
    SYS_exit by Main Vcpu Disk Pager Snapshot: "the end of a thread";
    SYS_exit_group by Main Pager: "the end of the process";
    SYS_clock_gettime by Main Vcpu Disk Pager Snapshot: "the time, on a host whose clock cannot be read without a call";

    // KVM (Documentation/virt/kvm/api.rst). The rules of a call are tried in turn, and this one holds at each
    // exit of a guest.
    SYS_ioctl [Int(1, KVM_RUN)] by Main Vcpu: "the guest runs";
    // Making a VM, for each boot and reboot.
    SYS_ioctl [Int(1, KVM_GET_API_VERSION)] by Main: "what was handed in is KVM";
    SYS_ioctl [Int(1, KVM_CREATE_VM)] by Main: "a VM";
    SYS_ioctl [Int(1, KVM_CHECK_EXTENSION)] by Main: "what this KVM can do";
    SYS_ioctl [Int(1, KVM_GET_VCPU_MMAP_SIZE)] by Main: "what a vCPU shares with KVM";
    SYS_ioctl [Int(1, KVM_GET_SUPPORTED_CPUID)] by Main: "what the guest's processors can do";
    SYS_ioctl [Int(1, KVM_CREATE_VCPU)] by Main: "a vCPU";
    SYS_ioctl [Int(1, KVM_SET_USER_MEMORY_REGION)] by Main: "guest memory";
    SYS_ioctl [Int(1, KVM_SET_TSS_ADDR)] by Main: "a page that KVM needs on Intel's processors";
    SYS_ioctl [Int(1, KVM_SET_IDENTITY_MAP_ADDR)] by Main: "another";
    SYS_ioctl [Int(1, KVM_CREATE_IRQCHIP)] by Main: "interrupt controllers";
    SYS_ioctl [Int(1, KVM_SET_CPUID2)] by Main: "what a vCPU says it is";
    SYS_ioctl [Int(1, KVM_SET_MSRS)] by Main: "a vCPU's registers at the start";
    SYS_ioctl [Int(1, KVM_SET_REGS)] by Main: "a vCPU's registers at the start";
    SYS_ioctl [Int(1, KVM_SET_SREGS)] by Main: "a vCPU's registers at the start";
    SYS_ioctl [Int(1, KVM_GET_SREGS)] by Main Vcpu: "the same; where a guest has crashed";
    SYS_ioctl [Int(1, KVM_GET_REGS)] by Main Vcpu: "where a guest has crashed";
    // Using it.
    SYS_ioctl [Int(1, KVM_IRQFD)] by Main Vcpu: "an eventfd becomes an interrupt, when the driver says which";
    SYS_ioctl [Int(1, KVM_IOEVENTFD)] by Main Vcpu: "a doorbell becomes an eventfd, where the driver puts it";
    SYS_ioctl [Int(1, KVM_SET_GSI_ROUTING)] by Main Vcpu: "interrupts go where the driver says";

    SYS_ioctl [Int(1, KVM_KVMCLOCK_CTRL)] by Main Vcpu: "a guest that goes on after a pause hears of it";

    // Snapshots: what KVM knows of a guest is read, and set where one goes on.
    SYS_ioctl [Int(1, KVM_GET_DIRTY_LOG)] by Main: "the memory that has changed since the last snapshot";
    SYS_ioctl [Int(1, KVM_GET_CLOCK)] by Main: "the guest's clock";
    SYS_ioctl [Int(1, KVM_SET_CLOCK)] by Main: "the guest's clock";
    SYS_ioctl [Int(1, KVM_GET_IRQCHIP)] by Main: "interrupt controllers";
    SYS_ioctl [Int(1, KVM_SET_IRQCHIP)] by Main: "interrupt controllers";
    SYS_ioctl [Int(1, KVM_GET_MSR_INDEX_LIST)] by Main: "which registers there are";
    SYS_ioctl [Int(1, KVM_GET_MSRS)] by Main: "a vCPU's model-specific registers";
    SYS_ioctl [Int(1, KVM_GET_LAPIC)] by Main: "a vCPU's interrupt controller";
    SYS_ioctl [Int(1, KVM_SET_LAPIC)] by Main: "a vCPU's interrupt controller";
    SYS_ioctl [Int(1, KVM_GET_MP_STATE)] by Main: "whether a vCPU runs, halts or waits to be woken";
    SYS_ioctl [Int(1, KVM_SET_MP_STATE)] by Main: "whether a vCPU runs, halts or waits to be woken";
    SYS_ioctl [Int(1, KVM_GET_VCPU_EVENTS)] by Main: "exceptions and interrupts on their way";
    SYS_ioctl [Int(1, KVM_SET_VCPU_EVENTS)] by Main: "exceptions and interrupts on their way";
    SYS_ioctl [Int(1, KVM_GET_DEBUGREGS)] by Main: "a vCPU's debug registers";
    SYS_ioctl [Int(1, KVM_SET_DEBUGREGS)] by Main: "a vCPU's debug registers";
    SYS_ioctl [Int(1, KVM_GET_XCRS)] by Main: "which extended state is on";
    SYS_ioctl [Int(1, KVM_SET_XCRS)] by Main: "which extended state is on";
    SYS_ioctl [Int(1, KVM_GET_XSAVE)] by Main: "other hosts: extended state, before Linux 5.17";
    SYS_ioctl [Int(1, KVM_GET_XSAVE2)] by Main: "other hosts: extended state, since Linux 5.17";
    SYS_ioctl [Int(1, KVM_SET_XSAVE)] by Main: "extended state";
    SYS_ioctl [Int(1, KVM_GET_TSC_KHZ)] by Main: "how fast the time stamp counter counts";
    SYS_ioctl [Int(1, KVM_SET_TSC_KHZ)] by Main: "other hosts: as fast as where the snapshot was taken";
    SYS_ioctl [Int(1, KVM_GET_NESTED_STATE)] by Main: "other hosts: what a guest's own guests are doing";
    SYS_ioctl [Int(1, KVM_SET_NESTED_STATE)] by Main: "other hosts: what a guest's own guests are doing";

    // A snapshot's memory that is brought in page by page. The userfaultfd itself was made before.
    SYS_ioctl [Int(1, UFFDIO_REGISTER)] by Main: "guest memory is brought in when it is touched";
    SYS_ioctl [Int(1, UFFDIO_COPY)] by Main Pager: "a page of guest memory is brought in";
    SYS_ioctl [Int(1, UFFDIO_ZEROPAGE)] by Main Pager: "a page of guest memory that the snapshot has not";
    SYS_ioctl [Int(1, UFFDIO_WAKE)] by Main Pager: "races: two have waited for one page";

    // The tap, and whatever is made to not wait.
    SYS_ioctl [Int(1, TUNSETVNETHDRSZ)] by Main: "frames have the header that the driver wants";
    SYS_ioctl [Int(1, TUNSETVNETLE)] by Main: "in the byte order of virtio";
    SYS_ioctl [Int(1, TUNSETOFFLOAD)] by Main: "offloads that the driver takes";
    SYS_ioctl [Int(1, TUNSETQUEUE)] by Main: "frames go to the queues that the driver uses";
    SYS_ioctl [Int(1, FIONBIO)] by Main: "a socket or tap is made to not wait";
}

const EMPTY_PATH: u32 = 0x1000;
const F_GETFD: u32 = 1;
const F_GETFL: u32 = 3;
const F_SETFL: u32 = 4;
const F_DUPFD_CLOEXEC: u32 = 1030;
const REGISTER_FILES_UPDATE: u32 = 6;
const ENTER_GETEVENTS: u64 = 1;
const PROT_EXEC: u64 = 4;
/// What both C libraries ask for: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID,
/// CHILD_CLEARTID.
const THREAD: u64 = 0x003d_0f00;
const PR_SET_NAME: u32 = 15;
const PR_SET_NO_NEW_PRIVS: u32 = 38;
const SET_MODE_FILTER: u32 = 1;
/// The first real-time signal that the C library leaves to programs.
const KICK: u32 = 34;
const SIGABRT: u32 = 6;

const KVM_GET_API_VERSION: u32 = 0xae00;
const KVM_CREATE_VM: u32 = 0xae01;
const KVM_CHECK_EXTENSION: u32 = 0xae03;
const KVM_GET_VCPU_MMAP_SIZE: u32 = 0xae04;
const KVM_GET_SUPPORTED_CPUID: u32 = 0xc008_ae05;
const KVM_CREATE_VCPU: u32 = 0xae41;
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const KVM_SET_TSS_ADDR: u32 = 0xae47;
const KVM_SET_IDENTITY_MAP_ADDR: u32 = 0x4008_ae48;
const KVM_CREATE_IRQCHIP: u32 = 0xae60;
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const KVM_IRQFD: u32 = 0x4020_ae76;
const KVM_IOEVENTFD: u32 = 0x4040_ae79;
const KVM_RUN: u32 = 0xae80;
const KVM_GET_MSR_INDEX_LIST: u32 = 0xc004_ae02;
const KVM_GET_DIRTY_LOG: u32 = 0x4010_ae42;
const KVM_GET_IRQCHIP: u32 = 0xc208_ae62;
const KVM_SET_IRQCHIP: u32 = 0x8208_ae63;
const KVM_SET_CLOCK: u32 = 0x4030_ae7b;
const KVM_GET_CLOCK: u32 = 0x8030_ae7c;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_SET_REGS: u32 = 0x4090_ae82;
const KVM_GET_SREGS: u32 = 0x8138_ae83;
const KVM_SET_SREGS: u32 = 0x4138_ae84;
const KVM_GET_MSRS: u32 = 0xc008_ae88;
const KVM_SET_MSRS: u32 = 0x4008_ae89;
const KVM_GET_LAPIC: u32 = 0x8400_ae8e;
const KVM_SET_LAPIC: u32 = 0x4400_ae8f;
const KVM_SET_CPUID2: u32 = 0x4008_ae90;
const KVM_GET_MP_STATE: u32 = 0x8004_ae98;
const KVM_SET_MP_STATE: u32 = 0x4004_ae99;
const KVM_GET_VCPU_EVENTS: u32 = 0x8040_ae9f;
const KVM_SET_VCPU_EVENTS: u32 = 0x4040_aea0;
const KVM_GET_DEBUGREGS: u32 = 0x8080_aea1;
const KVM_SET_DEBUGREGS: u32 = 0x4080_aea2;
const KVM_SET_TSC_KHZ: u32 = 0xaea2;
const KVM_GET_TSC_KHZ: u32 = 0xaea3;
const KVM_GET_XSAVE: u32 = 0x9000_aea4;
const KVM_SET_XSAVE: u32 = 0x5000_aea5;
const KVM_GET_XCRS: u32 = 0x8188_aea6;
const KVM_SET_XCRS: u32 = 0x4188_aea7;
const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
const KVM_GET_NESTED_STATE: u32 = 0xc080_aebe;
const KVM_SET_NESTED_STATE: u32 = 0x4080_aebf;
const KVM_GET_XSAVE2: u32 = 0x9000_aecf;
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
const TUNSETQUEUE: u32 = 0x4004_54d9;
const TUNSETVNETLE: u32 = 0x4004_54dc;
const FIONBIO: u32 = 0x5421;

#[cfg(test)]
mod tests {
    use super::{Main, RULES, Rule};

    #[test]
    fn a_call_is_allowed_always_or_under_conditions_but_not_both() {
        for rule in RULES.iter().filter(|rule| rule.when.is_empty()) {
            let same = |other: &&Rule| other.call == rule.call;
            assert_eq!(RULES.iter().filter(same).count(), 1, "{}", rule.name);
        }
    }

    #[test]
    fn what_a_thread_may_do_the_process_may() {
        for rule in RULES {
            assert!(rule.threads.contains(&Main), "{} {:?}", rule.name, rule.when);
        }
    }

    #[test]
    fn nothing_is_allowed_that_leads_out() {
        let never = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_clone3,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_ptrace,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_capset,
            libc::SYS_prlimit64,
            libc::SYS_setrlimit,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
            libc::SYS_open_by_handle_at,
            libc::SYS_pkey_mprotect,
            libc::SYS_personality,
        ];
        let allowed = RULES.iter().filter(|rule| never.contains(&rule.call));
        assert_eq!(allowed.map(|rule| rule.name).collect::<Vec<_>>(), [""; 0]);
    }
}
