//! userfaultfd(2): whoever touches a page of a registered range that is not there yet waits until somebody
//! has put one there, the kernel on a program's behalf too (KVM, `preadv`, workers of io_uring).
//!
//! Invariants: a userfaultfd serves the memory of the process that has made it, and of no other, so that it
//! cannot be handed in. Once it is closed, missing pages are zero, as in memory that was never registered.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::process::{Resource, getrlimit};

/// There is no userfaultfd that serves the kernel's accesses to memory.
#[derive(Debug, thiserror::Error)]
#[error("making a userfaultfd")]
pub struct NoUserfaultfd(#[source] io::Error);

/// An open one, with nothing registered at first. Never waits.
#[derive(Debug)]
pub struct Userfault(File);

/// The host's addresses of some memory: the first, and the number of bytes. Whole pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// The first.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// How much of what was to be put there is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Put {
    /// So many bytes; all, or as far as to a page that was there already, or to where the kernel had to wait.
    Some(u64),
    /// The first page was there already.
    AlreadyThere,
}

impl Userfault {
    /// Makes one, by `device` (`/dev/userfaultfd`, Linux 6.1) or, without it, by the system call, for which the
    /// kernel wants `CAP_SYS_PTRACE` or `vm.unprivileged_userfaultfd` = 1.
    ///
    /// # Errors
    /// The kernel has none, or not for this process.
    pub fn new(device: Option<BorrowedFd<'_>>) -> Result<Self, NoUserfaultfd> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let made = match device {
            // SAFETY: it takes flags and gives a new descriptor; a device of another kind refuses it.
            Some(device) => unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) },
            None => make_by_call(flags),
        };
        if made < 0 {
            return Err(NoUserfaultfd(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new, and nobody else's.
        let made = unsafe { OwnedFd::from_raw_fd(made) };
        let made = Self(move_up(&made).map_err(|errno| NoUserfaultfd(errno.into()))?.into());
        let mut api = [UFFD_API, 0, 0];
        made.ask(UFFDIO_API, &mut api).map_err(NoUserfaultfd)?;
        Ok(made)
    }

    /// Pages of this memory that are missing are told of from now on, and waited for.
    ///
    /// # Errors
    /// It is no memory that this can be done with, or it is registered already.
    pub fn register(&self, Span { start, len }: Span) -> io::Result<()> {
        self.ask(UFFDIO_REGISTER, &mut [start, len, REGISTER_MODE_MISSING, 0])
    }

    /// The addresses of pages that are waited for, as many as are told of and fit. None: nobody waits.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn faults(&self, into: &mut Vec<u64>) -> io::Result<()> {
        into.clear();
        let mut messages = [0; MESSAGE_BYTES * MESSAGES_MAX];
        let read = match (&self.0).read(&mut messages) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            read => read?,
        };
        let (messages, _) = messages.get(..read).unwrap_or_default().as_chunks::<MESSAGE_BYTES>();
        into.extend(messages.iter().filter_map(address));
        Ok(())
    }

    /// Puts pages with this content at `start`, of which none is there, and lets go on who waits for them.
    ///
    /// # Errors
    /// The host has no memory left, or the memory is gone.
    pub fn copy(&self, start: u64, content: &[u8]) -> io::Result<Put> {
        let mut argument = [start, content.as_ptr() as u64, content.len() as u64, 0, 0];
        let result = self.ask(UFFDIO_COPY, &mut argument);
        let [.., done] = argument;
        put(result, done)
    }

    /// Puts pages of zeroes there, likewise.
    ///
    /// # Errors
    /// The host has no memory left, or the memory is gone.
    pub fn zero(&self, Span { start, len }: Span) -> io::Result<Put> {
        let mut argument = [start, len, 0, 0];
        let result = self.ask(UFFDIO_ZEROPAGE, &mut argument);
        let [.., done] = argument;
        put(result, done)
    }

    /// Lets go on who waits for a page of this memory.
    ///
    /// # Errors
    /// It is not registered.
    pub fn wake(&self, Span { start, len }: Span) -> io::Result<()> {
        self.ask(UFFDIO_WAKE, &mut [start, len])
    }

    fn ask<const WORDS: usize>(&self, what: u32, argument: &mut [u64; WORDS]) -> io::Result<()> {
        // SAFETY: each of these calls reads and writes a structure of 64-bit numbers, as many as its number
        // says and its caller gives. What it does to memory is of guest memory alone, which no reference
        // points into; what it copies from is a slice that outlives the call.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::c_ulong::from(what), argument.as_mut_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Gives it a higher number than any of KVM's. When a process is killed, Linux lets go of what it had open from the
/// highest number down; and where KVM lets go of a VM it waits for the kernel's threads that wait for pages on the
/// VM's behalf (asynchronous page faults), which nothing frees but the end of the userfaultfd.
fn move_up(made: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(NUMBER_MAX).min(NUMBER_MAX);
    let number = RawFd::try_from(limit.saturating_sub(1)).unwrap_or_default();
    rustix::io::fcntl_dupfd_cloexec(made, number)
}

#[allow(clippy::cast_possible_truncation, reason = "descriptors are ints")]
fn make_by_call(flags: libc::c_int) -> RawFd {
    // SAFETY: it takes flags, and gives a new descriptor.
    unsafe { libc::syscall(libc::SYS_userfaultfd, flags) as RawFd }
}

/// What `UFFDIO_COPY` and `UFFDIO_ZEROPAGE` have come to: the kernel says how far it was (or why nowhere) also
/// where it says `EAGAIN`.
fn put(result: io::Result<()>, done: u64) -> io::Result<Put> {
    match (result, done.cast_signed()) {
        (Ok(()), _) => Ok(Put::Some(done)),
        (Err(error), 1..) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(Put::Some(done)),
        (Err(error), _) => match error.raw_os_error() {
            Some(libc::EEXIST) => Ok(Put::AlreadyThere),
            Some(libc::EAGAIN) => Ok(Put::Some(0)),
            _ => Err(error),
        },
    }
}

/// `struct uffd_msg`: what has happened in byte 0, and for a page that is missing its address in bytes 16 to 23.
fn address(message: &[u8; MESSAGE_BYTES]) -> Option<u64> {
    let [UFFD_EVENT_PAGEFAULT, rest @ ..] = message else { return None };
    rest.get(15..)?.first_chunk().map(|address| u64::from_ne_bytes(*address))
}

/// Beyond what a machine without thousands of vsock streams opens; the kernel's table grows with it.
const NUMBER_MAX: u64 = 4096;
const UFFD_API: u64 = 0xaa;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const REGISTER_MODE_MISSING: u64 = 1;
const MESSAGE_BYTES: usize = 32;
/// Read at once: more than a machine has vCPUs and disks' threads at work, as a rule.
const MESSAGES_MAX: usize = 16;

// linux/userfaultfd.h.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
const UFFDIO_API: u32 = 0xc018_aa3f;
/// Registers memory.
pub const UFFDIO_REGISTER: u32 = 0xc020_aa00;
/// Lets go on who waits.
pub const UFFDIO_WAKE: u32 = 0x8010_aa02;
/// Puts pages there.
pub const UFFDIO_COPY: u32 = 0xc028_aa03;
/// Puts pages of zeroes there.
pub const UFFDIO_ZEROPAGE: u32 = 0xc020_aa04;
