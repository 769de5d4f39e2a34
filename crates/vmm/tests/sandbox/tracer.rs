//! Watches what threads ask of the kernel, and has them ask for more (ptrace(2)). All of it by the thread that
//! begins it: the kernel knows no other tracer.

use std::{collections::BTreeMap, io, mem, ptr};

use ec2vmm_vmm::sandbox::Thread;

/// A call as it is about to be made.
pub(crate) struct Call {
    /// The filters that hold: none before the process is shut in.
    pub(crate) filters: Vec<Thread>,
    pub(crate) number: i64,
    pub(crate) arguments: [u64; 6],
    /// What the thread is called.
    pub(crate) thread: String,
}

#[derive(Clone, Default)]
struct Task {
    filters: Vec<Thread>,
}

/// Follows a child of this thread, and all threads that come from it, to the end of the last, from wherever it
/// is now. `begun` is called when it is followed. How the child ended, as wait(2) has it.
pub(crate) fn follow(child: i32, begun: impl FnOnce(), mut see: impl FnMut(&Call)) -> i32 {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SEIZE, child, 0, options as usize).unwrap();
    request(libc::PTRACE_INTERRUPT, child, 0, 0).unwrap();
    let mut tasks = BTreeMap::from([(child, Task::default())]);
    let mut unknown = Vec::new();
    let (mut begun, mut ended) = (Some(begun), 0);
    loop {
        let mut status = 0;
        // SAFETY: writes one number.
        let task = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if task < 0 {
            assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::ECHILD));
            return ended;
        }
        if !libc::WIFSTOPPED(status) {
            tasks.remove(&task);
            if task == child {
                ended = status;
            }
            continue;
        }
        let Some(known) = tasks.get_mut(&task) else {
            // Its beginning is told by whoever began it, a moment later.
            unknown.push(task);
            continue;
        };
        let (stop, event) = (libc::WSTOPSIG(status), status >> 16);
        let mut signal = 0;
        if stop == CALL {
            look(child, task, known, &mut see);
        } else if event == libc::PTRACE_EVENT_CLONE {
            let like_it = known.clone();
            let mut new: libc::c_ulong = 0;
            request(libc::PTRACE_GETEVENTMSG, task, 0, (&raw mut new).addr()).unwrap();
            tasks.insert(new as i32, like_it);
            if let Some(at) = unknown.iter().position(|task| *task == new as i32) {
                unknown.remove(at);
                go_on(new as i32, 0);
            }
        } else if event == 0 {
            signal = stop;
        } else if let Some(begun) = begun.take() {
            begun();
        }
        go_on(task, signal);
    }
}

fn look(child: i32, task: i32, known: &mut Task, see: &mut impl FnMut(&Call)) {
    // SAFETY: all zeroes is a valid value.
    let mut info: libc::ptrace_syscall_info = unsafe { mem::zeroed() };
    let size = mem::size_of_val(&info);
    if request(libc::PTRACE_GET_SYSCALL_INFO, task, size, (&raw mut info).addr()).is_err()
        || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY
    {
        return;
    }
    // SAFETY: it is the entry to a call, so this is what the kernel has filled.
    let entry = unsafe { info.u.entry };
    let name = std::fs::read_to_string(format!("/proc/{child}/task/{task}/comm")).unwrap_or_default();
    let (filters, thread) = (known.filters.clone(), name.trim().to_owned());
    see(&Call { filters, number: entry.nr as i64, arguments: entry.args, thread });
    if entry.nr as i64 == libc::SYS_seccomp {
        known.filters.push(match (known.filters.is_empty(), name.get(..4)) {
            (true, _) => Thread::Main,
            (false, Some("vcpu")) => Thread::Vcpu,
            (false, Some("disk")) => Thread::Disk,
            (false, Some("page")) => Thread::Pager,
            (false, Some("snap")) => Thread::Snapshot,
            (false, _) => panic!("the thread {name} narrows its filter"),
        });
    }
}

/// A task that was killed meanwhile cannot go on.
fn go_on(task: i32, signal: i32) {
    let _ = request(libc::PTRACE_SYSCALL, task, 0, signal as usize);
}

/// Has a thread that waits in a call make another in its place. What that came to; else the signal by which
/// the thread was ended for it.
pub(crate) fn make_call(thread: i32, number: i64, arguments: [u64; 6]) -> Result<i64, i32> {
    request(libc::PTRACE_SEIZE, thread, 0, libc::PTRACE_O_TRACESYSGOOD as usize).unwrap();
    request(libc::PTRACE_INTERRUPT, thread, 0, 0).unwrap();
    assert!(stops(thread).is_ok(), "it waits in a call");
    let mut registers = registers(thread);
    // The instruction that it is behind is the one that makes a call, of two bytes.
    registers.rip -= 2;
    registers.rax = number as u64;
    registers.orig_rax = u64::MAX;
    [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
    request(libc::PTRACE_SETREGS, thread, 0, (&raw const registers).addr()).unwrap();
    // To the beginning of the call, which comes before the filter; to its end, which comes even where the filter
    // kills; and to what the thread does next: a call of its own, or to be killed.
    for _ in 0..2 {
        go_on(thread, 0);
        assert_eq!(stops(thread)?, CALL);
    }
    let result = self::registers(thread).rax as i64;
    go_on(thread, 0);
    let next = stops(thread)?;
    if next == CALL {
        return Ok(result);
    }
    go_on(thread, next);
    stops(thread).map(|_| result)
}

fn registers(thread: i32) -> libc::user_regs_struct {
    // SAFETY: all zeroes is a valid value.
    let mut registers: libc::user_regs_struct = unsafe { mem::zeroed() };
    request(libc::PTRACE_GETREGS, thread, 0, (&raw mut registers).addr()).unwrap();
    registers
}

/// Waits until a thread stops, and says by what; or by which signal it has ended instead.
fn stops(thread: i32) -> Result<i32, i32> {
    let mut status = 0;
    // SAFETY: writes one number.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert_eq!(waited, thread);
    if libc::WIFSTOPPED(status) { Ok(libc::WSTOPSIG(status)) } else { Err(libc::WTERMSIG(status)) }
}

/// The stop at either end of a call.
const CALL: i32 = libc::SIGTRAP | 0x80;

fn request(what: libc::c_uint, task: i32, address: usize, data: usize) -> io::Result<()> {
    let (address, data) =
        (ptr::without_provenance_mut::<u8>(address), ptr::without_provenance_mut::<u8>(data));
    // SAFETY: where the kernel reads or writes, the callers give the address of what is large enough.
    let result = unsafe { libc::ptrace(what, task, address, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
