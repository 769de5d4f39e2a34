//! A vCPU: a thread that lets KVM run the guest, and answers what KVM cannot.
//!
//! It ends by itself when the guest asks for power-off or reset, or when it cannot go on; others park
//! them by [`Vcpu::pause_all`] and end them by [`Vcpu::stop_all`].

use std::{
    io,
    os::unix::thread::JoinHandleExt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_msr_entry,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::{
    bus::{Bus, GuestRequest},
    gate::{Gate, Pass, Passed},
    mailbox::{Notice, Sender},
    sandbox,
    vm::{KvmError, Vm},
    watch::Seen,
    x86_64::{boot::Entry, cpuid, registers},
};

/// Why a vCPU's thread has ended.
#[derive(Debug)]
pub enum VcpuEnd {
    /// [`Vcpu::stop_all`] was called.
    Stopped,
    /// The guest wants to be reset.
    Reset,
    /// The guest has powered itself off.
    PowerOff,
    /// The processor shut down: three faults, each in the handling of the one before.
    TripleFault {
        /// Registers at that point.
        registers: String,
    },
    /// KVM cannot go on.
    InternalError {
        /// What KVM says.
        what: String,
        /// Registers at that point.
        registers: String,
    },
}

/// How often the guest was left, and why: counters of all vCPUs of a machine.
#[derive(Debug, Default)]
pub struct ExitCounters {
    /// Port reads and writes.
    pub port: AtomicU64,
    /// Reads and writes of device memory, PCI configuration included.
    pub mmio: AtomicU64,
    /// Everything else.
    pub other: AtomicU64,
}

/// A running vCPU.
pub struct Vcpu {
    thread: thread::JoinHandle<()>,
    shared: Arc<Shared>,
}

impl Vcpu {
    /// Makes vCPU `index` of `count` and sets it up: the first begins at `entry`, the others wait
    /// until the first wakes them.
    ///
    /// # Errors
    /// KVM refused.
    pub fn create(vm: &Vm, index: u8, count: u8, entry: &Entry) -> Result<VcpuFd, KvmError> {
        let vcpu = vm.create_vcpu(index)?;
        let cpuid = cpuid::for_vcpu(vm.supported_cpuid(), index, count)
            .map_err(|source| KvmError { what: "describing the processors by CPUID", source })?;
        vcpu.set_cpuid2(&cpuid).map_err(KvmError::of("setting CPUID"))?;
        set_msrs(&vcpu, &registers::model_specific())?;
        if index == 0 {
            let new = vcpu.get_sregs().map_err(KvmError::of("reading system registers"))?;
            vcpu.set_sregs(&registers::system(entry, new))
                .map_err(KvmError::of("setting system registers"))?;
            vcpu.set_regs(&registers::general(entry)).map_err(KvmError::of("setting registers"))?;
        }
        Ok(vcpu)
    }

    /// Lets it run on a thread of its own, as far as `gate` does.
    ///
    /// # Errors
    /// The host allows no more threads.
    pub fn start(
        fd: VcpuFd,
        index: u8,
        bus: Arc<Bus>,
        gate: &Arc<Gate>,
        news: Sender,
        counters: Arc<ExitCounters>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(fd));
        // Before the thread is there: whoever pauses then waits for it.
        let pass = gate.enter();
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("vcpu{index}")).stack_size(STACK_BYTES).spawn(move || {
                sandbox::narrow(sandbox::Thread::Vcpu);
                let end = live(&shared, &pass, &bus, &counters);
                // The guest's devices must be let go of before whoever hears of the end drops them.
                drop(bus);
                news.send(Notice::VcpuEnded { end });
            })?
        };
        Ok(Self { thread, shared })
    }

    /// Parks them all, and waits until none is in its guest, nor at work for it.
    pub fn pause_all(vcpus: &[Self], gate: &Gate) {
        gate.pause(|| vcpus.iter().for_each(Self::kick));
    }

    /// Ends them all and waits until they have ended.
    pub fn stop_all(vcpus: Vec<Self>, gate: &Gate) {
        gate.stop(|| vcpus.iter().for_each(Self::kick));
        for Self { thread, .. } in vcpus {
            if thread.join().is_err() {
                log::error!("a vCPU's thread has panicked");
            }
        }
    }

    /// What KVM knows of it. Only while it is parked: else whoever asks waits until it is.
    pub fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.shared.fd()
    }

    /// Has it looked at: what is seen can be had by [`Self::seen`] once it has left the guest.
    pub fn look(&self) {
        self.shared.look.store(true, Ordering::Release);
        self.kick();
    }

    /// What was seen of it since this was asked last.
    pub fn seen(&self) -> Option<Seen> {
        self.shared.seen().take()
    }

    /// Processor time that it has used. None once its thread has ended.
    pub fn used(&self) -> Option<Duration> {
        let mut clock = 0;
        // SAFETY: the thread has not been joined, so that its handle is valid, and the system writes to
        // `clock` alone.
        if unsafe { libc::pthread_getcpuclockid(self.thread.as_pthread_t(), &raw mut clock) } != 0 {
            return None;
        }
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the system writes to `time` alone.
        if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
            return None;
        }
        Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
    }

    /// Makes it leave the guest, wherever it is, and come to the gate.
    fn kick(&self) {
        self.shared.set_immediate_exit(true);
        // One that has ended needs no kick.
        if let Err(error) = self.thread.kill(kick_signal())
            && error.errno() != libc::ESRCH
        {
            log::error!("signalling a vCPU's thread: {error}");
        }
    }
}

fn set_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
    const WHAT: &str = "setting model-specific registers";
    let failed = |kind: io::ErrorKind| KvmError { what: WHAT, source: kind.into() };
    let msrs = Msrs::from_entries(entries).map_err(|_| failed(io::ErrorKind::InvalidInput))?;
    // KVM stops at the first that it does not have, and says how many it has set.
    let count = vcpu.set_msrs(&msrs).map_err(KvmError::of(WHAT))?;
    if count == entries.len() { Ok(()) } else { Err(failed(io::ErrorKind::Unsupported)) }
}

/// What the thread of a vCPU and its owner share.
struct Shared {
    /// The thread holds it until it is parked or has ended.
    fd: Mutex<VcpuFd>,
    /// `kvm_run.immediate_exit`: KVM looks at it before it enters the guest, so that a signal that
    /// comes just before then is not lost.
    immediate_exit: *const AtomicU8,
    /// `kvm_run.io.size`: how wide each access is, where one exit has several (`rep ins`, `rep outs`).
    port_width: *const u8,
    /// It is to be looked at when it has left the guest.
    look: AtomicBool,
    seen: Mutex<Option<Seen>>,
}

// SAFETY: the pointers are into the shared mapping that `fd` owns, which lives as long as this does. The byte
// behind the first is used as an atomic alone; that behind the second is read by whoever holds `fd` alone.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(mut fd: VcpuFd) -> Self {
        let run = fd.get_kvm_run();
        let immediate_exit = (&raw mut run.immediate_exit).cast::<AtomicU8>().cast_const();
        // SAFETY: whatever the union holds, its place is named here, and not read.
        let port_width = unsafe { &raw const run.__bindgen_anon_1.io.size };
        Self {
            fd: Mutex::new(fd),
            immediate_exit,
            port_width,
            look: AtomicBool::new(false),
            seen: Mutex::default(),
        }
    }

    fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Option<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at it, if somebody wants to know.
    fn look_if_wanted(&self, fd: &VcpuFd) {
        if self.look.swap(false, Ordering::AcqRel)
            && let Ok(registers) = fd.get_regs()
        {
            let interrupts_on = registers.rflags & RFLAGS_IF != 0;
            *self.seen() = Some(Seen { interrupts_on, rip: registers.rip });
        }
    }

    /// How wide each of the port accesses is that KVM has just left the guest for.
    fn port_width(&self) -> usize {
        // SAFETY: the byte lies in the mapping of `fd`. KVM writes it only within KVM_RUN, which the thread that
        // asks is not in.
        usize::from(unsafe { self.port_width.read_volatile() }).max(1)
    }

    fn set_immediate_exit(&self, on: bool) {
        // SAFETY: the byte lies in the mapping of `fd`, which is not unmapped before `self` is dropped.
        let immediate_exit = unsafe { &*self.immediate_exit };
        immediate_exit.store(on.into(), Ordering::Release);
    }
}

/// Prepares the process for kicks: their signal must not end the process.
///
/// # Errors
/// The system refused the handler.
pub fn prepare_signal() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(kick_signal(), nothing)
        .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))
}

fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// The life of a vCPU's thread: in the guest, at the gate, in the guest.
fn live(shared: &Shared, pass: &Pass, bus: &Bus, counters: &ExitCounters) -> VcpuEnd {
    loop {
        let passed = pass.come(|| shared.set_immediate_exit(false));
        let mut fd = shared.fd();
        shared.look_if_wanted(&fd);
        match passed {
            Passed::Through => {}
            Passed::Parked => forgive_absence(&fd),
            Passed::Stopped => return VcpuEnd::Stopped,
        }
        if let Some(end) = run(&mut fd, shared, bus, counters) {
            return end;
        }
    }
}

/// Keeps the guest's watchdog quiet about the time for which this vCPU was parked.
fn forgive_absence(fd: &VcpuFd) {
    match fd.kvmclock_ctrl() {
        // A guest that uses no kvm-clock has no other way to be told.
        Err(errno) if errno.errno() == libc::EINVAL => {}
        Err(errno) => log::warn!("telling the guest that it was paused: {errno}"),
        Ok(()) => {}
    }
}

/// Runs the guest until it is at its end, or (none) until this vCPU is kicked and nothing is left to be done
/// of its last exit: KVM finishes that before it looks at `immediate_exit`.
fn run(fd: &mut VcpuFd, shared: &Shared, bus: &Bus, counters: &ExitCounters) -> Option<VcpuEnd> {
    loop {
        let exit = match fd.run() {
            Ok(exit) => exit,
            Err(errno) if [libc::EINTR, libc::EAGAIN].contains(&errno.errno()) => return None,
            Err(errno) => return Some(internal_error(fd, format!("KVM_RUN: {}", io::Error::from(errno)))),
        };
        let counter = match &exit {
            VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => &counters.port,
            VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..) => &counters.mmio,
            _ => &counters.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        match exit {
            // Of a repeated instruction, each access in its turn.
            VcpuExit::IoIn(port, data) => {
                data.chunks_mut(shared.port_width()).for_each(|data| bus.port_read(port, data));
            }
            VcpuExit::IoOut(port, data) => {
                match data.chunks(shared.port_width()).find_map(|data| bus.port_write(port, data)) {
                    None => {}
                    Some(GuestRequest::Reset) => return Some(VcpuEnd::Reset),
                    Some(GuestRequest::PowerOff) => return Some(VcpuEnd::PowerOff),
                }
            }
            VcpuExit::MmioRead(address, data) => bus.mmio_read(address, data),
            VcpuExit::MmioWrite(address, data) => bus.mmio_write(address, data),
            VcpuExit::Intr => {}
            VcpuExit::Shutdown => return Some(VcpuEnd::TripleFault { registers: dump(fd) }),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => return Some(VcpuEnd::PowerOff),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return Some(VcpuEnd::Reset),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => {
                return Some(internal_error(fd, "the guest reported a crash".into()));
            }
            VcpuExit::FailEntry(reason, cpu) => {
                return Some(internal_error(
                    fd,
                    format!("entering the guest failed on host CPU {cpu}: reason {reason:#x}"),
                ));
            }
            VcpuExit::InternalError => {
                let what = internal_error_text(fd);
                return Some(internal_error(fd, what));
            }
            other => {
                let what = format!("unexpected exit {other:?}");
                return Some(internal_error(fd, what));
            }
        }
    }
}

fn internal_error(fd: &VcpuFd, what: String) -> VcpuEnd {
    VcpuEnd::InternalError { what, registers: dump(fd) }
}

/// What KVM says of an internal error (`KVM_EXIT_INTERNAL_ERROR`, Documentation/virt/kvm/api.rst).
fn internal_error_text(fd: &mut VcpuFd) -> String {
    // SAFETY: KVM has just filled this part of the union: the exit reason was KVM_EXIT_INTERNAL_ERROR.
    let internal = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    let kind = match internal.suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "an instruction that KVM cannot emulate",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered",
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit reason that KVM does not know",
        _ => "of a kind that is not known",
    };
    let data: Vec<String> =
        internal.data.iter().take(internal.ndata as usize).map(|word| format!("{word:#x}")).collect();
    format!("internal error {}, {kind} [{}]", internal.suberror, data.join(" "))
}

/// Registers as people read them.
fn dump(fd: &VcpuFd) -> String {
    let (regs, sregs) = match (fd.get_regs(), fd.get_sregs()) {
        (Ok(regs), Ok(sregs)) => (regs, sregs),
        (Err(error), _) | (_, Err(error)) => return format!("registers cannot be read: {error}"),
    };
    format!(
        "rip={:#018x} rflags={:#x} rsp={:#018x} rbp={:#018x}\n\
         rax={:#018x} rbx={:#018x} rcx={:#018x} rdx={:#018x}\n\
         rsi={:#018x} rdi={:#018x} r8 ={:#018x} r9 ={:#018x}\n\
         r10={:#018x} r11={:#018x} r12={:#018x} r13={:#018x}\n\
         r14={:#018x} r15={:#018x} cs={:#x} ss={:#x} efer={:#x}\n\
         cr0={:#x} cr2={:#018x} cr3={:#018x} cr4={:#x}",
        regs.rip,
        regs.rflags,
        regs.rsp,
        regs.rbp,
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        sregs.cs.selector,
        sregs.ss.selector,
        sregs.efer,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
    )
}

/// Interrupts are taken (Intel SDM volume 1, 3.4.3.3).
const RFLAGS_IF: u64 = 1 << 9;
/// Generous for what runs on it, small beside the budget of a machine.
const STACK_BYTES: usize = 128 * 1024;
