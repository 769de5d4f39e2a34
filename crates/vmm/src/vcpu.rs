//! A vCPU: a thread that lets KVM run the guest, and answers what KVM cannot.
//!
//! It ends by itself when the guest asks for power-off or reset, or when it cannot go on; others end
//! them by [`Vcpu::stop_all`].

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    thread,
};

use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_msr_entry,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::{
    bus::{Bus, GuestRequest},
    mailbox::{Notice, Sender},
    sandbox,
    vm::{KvmError, Vm},
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
    kick: Kick,
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

    /// Lets it run on a thread of its own.
    ///
    /// # Errors
    /// The host allows no more threads.
    pub fn start(
        mut fd: VcpuFd,
        index: u8,
        bus: Arc<Bus>,
        news: Sender,
        counters: Arc<ExitCounters>,
    ) -> io::Result<Self> {
        let kick = Kick::new(&mut fd);
        let stop = Arc::clone(&kick.stop);
        let thread =
            thread::Builder::new().name(format!("vcpu{index}")).stack_size(STACK_BYTES).spawn(move || {
                sandbox::narrow(sandbox::Thread::Vcpu);
                let end = run(&mut fd, &bus, &stop, &counters);
                // The guest's devices must be let go of before whoever hears of the end drops them.
                drop(bus);
                news.send(Notice::VcpuEnded { end });
                // The mapping that `Kick` writes to goes with `fd`: wait until nobody will.
                while !stop.load(Ordering::Acquire) {
                    thread::park();
                }
            })?;
        Ok(Self { thread, kick })
    }

    /// Ends them all and waits until they have ended.
    pub fn stop_all(vcpus: Vec<Self>) {
        for Self { thread, kick } in &vcpus {
            kick.stop(thread);
        }
        for Self { thread, .. } in vcpus {
            if thread.join().is_err() {
                log::error!("a vCPU's thread has panicked");
            }
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

/// Makes a vCPU leave the guest, wherever it is.
struct Kick {
    stop: Arc<AtomicBool>,
    /// `kvm_run.immediate_exit`: KVM looks at it before it enters the guest, so that a signal that
    /// comes just before then is not lost.
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is used in `stop` alone, while the thread that owns the mapping still waits
// for the flag that `stop` sets after that use.
unsafe impl Send for Kick {}

impl Kick {
    fn new(fd: &mut VcpuFd) -> Self {
        let immediate_exit = (&raw mut fd.get_kvm_run().immediate_exit).cast::<AtomicU8>().cast_const();
        Self { stop: Arc::new(AtomicBool::new(false)), immediate_exit }
    }

    fn stop(&self, thread: &thread::JoinHandle<()>) {
        // SAFETY: the byte lies in the shared mapping of the `VcpuFd` that the thread owns, and the
        // thread keeps it until it sees `stop`, which is set after this.
        let immediate_exit = unsafe { &*self.immediate_exit };
        immediate_exit.store(1, Ordering::Release);
        self.stop.store(true, Ordering::Release);
        thread.thread().unpark();
        if let Err(error) = thread.kill(kick_signal()) {
            log::error!("signalling a vCPU's thread: {error}");
        }
    }
}

/// Prepares the process for [`Vcpu::stop_all`]: its signal must not end the process.
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

fn run(fd: &mut VcpuFd, bus: &Bus, stop: &AtomicBool, counters: &ExitCounters) -> VcpuEnd {
    loop {
        if stop.load(Ordering::Acquire) {
            return VcpuEnd::Stopped;
        }
        let exit = match fd.run() {
            Ok(exit) => exit,
            Err(errno) if [libc::EINTR, libc::EAGAIN].contains(&errno.errno()) => continue,
            Err(errno) => return internal_error(fd, format!("KVM_RUN: {}", io::Error::from(errno))),
        };
        let counter = match &exit {
            VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => &counters.port,
            VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..) => &counters.mmio,
            _ => &counters.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        match exit {
            VcpuExit::IoIn(port, data) => bus.port_read(port, data),
            VcpuExit::IoOut(port, data) => match bus.port_write(port, data) {
                None => {}
                Some(GuestRequest::Reset) => return VcpuEnd::Reset,
                Some(GuestRequest::PowerOff) => return VcpuEnd::PowerOff,
            },
            VcpuExit::MmioRead(address, data) => bus.mmio_read(address, data),
            VcpuExit::MmioWrite(address, data) => bus.mmio_write(address, data),
            VcpuExit::Intr => {}
            VcpuExit::Shutdown => return VcpuEnd::TripleFault { registers: dump(fd) },
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => return VcpuEnd::PowerOff,
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return VcpuEnd::Reset,
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => {
                return internal_error(fd, "the guest reported a crash".into());
            }
            VcpuExit::FailEntry(reason, cpu) => {
                return internal_error(
                    fd,
                    format!("entering the guest failed on host CPU {cpu}: reason {reason:#x}"),
                );
            }
            VcpuExit::InternalError => {
                let what = internal_error_text(fd);
                return internal_error(fd, what);
            }
            other => {
                let what = format!("unexpected exit {other:?}");
                return internal_error(fd, what);
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

/// Generous for what runs on it, small beside the budget of a machine.
const STACK_BYTES: usize = 128 * 1024;
