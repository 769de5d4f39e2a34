//! Threads of a machine process that are held where they are (ptrace(2)), so that what they do takes as long as a test
//! wants. All of it by the thread that begins it: the kernel knows no other tracer.

use std::{
    io, ptr, thread,
    time::{Duration, Instant},
};

use crate::machine::Machine;

/// A machine's first thread, whose next thread will be held.
pub(crate) struct Birth {
    first: i32,
}

/// A thread that does nothing.
pub(crate) struct Held {
    thread: i32,
}

impl Birth {
    /// Looks at the machine from here on. None where this may not be done.
    pub(crate) fn of(machine: &Machine) -> Option<Self> {
        let first = i32::try_from(machine.process.id()).unwrap();
        let seized = request(libc::PTRACE_SEIZE, first, 0, libc::PTRACE_O_TRACECLONE as usize);
        seized.inspect_err(|error| eprintln!("SKIPPED: ptrace: {error}")).ok().map(|()| Self { first })
    }

    /// Waits until it begins a thread, which has done nothing yet, and lets the first go on.
    pub(crate) fn hold(self) -> Held {
        let first = self.first;
        let held = self.hold_both();
        request(libc::PTRACE_DETACH, first, 0, 0).unwrap();
        held
    }

    /// The same, and the first thread, with the event loop, goes no further.
    pub(crate) fn hold_both(self) -> Held {
        let status = status_of(self.first);
        assert_eq!(status >> 8, libc::SIGTRAP | libc::PTRACE_EVENT_CLONE << 8, "{status:#x}");
        let mut thread: libc::c_ulong = 0;
        request(libc::PTRACE_GETEVENTMSG, self.first, 0, (&raw mut thread).addr()).unwrap();
        let thread = i32::try_from(thread).unwrap();
        assert!(libc::WIFSTOPPED(status_of(thread)));
        Held { thread }
    }
}

impl Held {
    /// Lets it go on.
    pub(crate) fn release(self) {
        request(libc::PTRACE_DETACH, self.thread, 0, 0).unwrap();
    }

    /// Waits until it has ended with its process, which has not ended before its tracer knows.
    pub(crate) fn end(self) {
        let status = status_of(self.thread);
        assert!(!libc::WIFSTOPPED(status), "{status:#x}");
    }
}

/// What wait(2) says next of a thread.
fn status_of(thread: i32) -> i32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut status = 0;
        // SAFETY: writes one number.
        match unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL | libc::WNOHANG) } {
            0 => thread::yield_now(),
            waited => {
                assert_eq!(waited, thread, "{}", io::Error::last_os_error());
                return status;
            }
        }
        assert!(Instant::now() < deadline, "thread {thread} neither stops nor ends");
    }
}

fn request(what: libc::c_uint, task: i32, address: usize, data: usize) -> io::Result<()> {
    let (address, data) =
        (ptr::without_provenance_mut::<u8>(address), ptr::without_provenance_mut::<u8>(data));
    // SAFETY: where the kernel writes, the caller gives the address of what is large enough.
    let result = unsafe { libc::ptrace(what, task, address, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const PATIENCE: Duration = Duration::from_secs(120);
