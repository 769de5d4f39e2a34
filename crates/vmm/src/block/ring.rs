//! Rings of io_uring, of which each serves one file at a time and can be asked for nothing else.
//!
//! What is asked of a ring passes no filter of system calls. So rings are made before the process shuts itself
//! in, restricted by the kernel for good (io_uring_register(2), IORING_REGISTER_RESTRICTIONS; Linux 5.10), and
//! none can be made later: some are kept for disks that are attached while the machine runs, and come back
//! when those are detached.
//!
//! Invariant: there is no ring that is not restricted. Where the kernel has no such rings, there are none.

#![allow(unsafe_code, reason = "a ring is taken out of what is dropped")]

use std::{
    fs::File,
    io,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, PoisonError},
};

use ec2vmm_devices::virtio::Again;
use io_uring::{IoUring, Probe, opcode, register::Restriction, squeue, types};

/// The rings that no disk uses just now.
#[derive(Clone, Default)]
pub struct Rings(Arc<Mutex<Vec<Ring>>>);

impl Rings {
    /// As many, or fewer where the kernel makes no more: none at all where it has no such rings or forbids them.
    /// That is logged.
    pub fn make(count: usize) -> Self {
        let mut rings = Vec::new();
        while rings.len() < count {
            match Ring::new() {
                Ok(ring) => rings.push(ring),
                Err(error) => {
                    let made = rings.len();
                    log::info!(
                        "{made} of {count} rings of io_uring, other disks are served by threads: {error}"
                    );
                    break;
                }
            }
        }
        Self(Arc::new(Mutex::new(rings)))
    }

    /// Whether a disk that comes now gets none.
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// A ring for `file`, which it holds until it comes back. None where all are in use.
    ///
    /// # Errors
    /// The kernel does not take the file.
    pub(super) fn lend(&self, file: &File) -> io::Result<Option<Lent>> {
        let Some(ring) = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop() else { return Ok(None) };
        let lent = Lent { ring: ManuallyDrop::new(ring), home: self.clone() };
        lent.uring.submitter().register_files_update(FILE.0, &[file.as_raw_fd()])?;
        Ok(Some(lent))
    }
}

/// A ring and what wakes whoever waits for it.
pub(super) struct Ring {
    pub(super) uring: IoUring,
    pub(super) event: Again,
}

impl Ring {
    fn new() -> io::Result<Self> {
        let uring = IoUring::builder().setup_r_disabled().build(ENTRIES)?;
        let submitter = uring.submitter();
        let mut probe = Probe::new();
        submitter.register_probe(&mut probe)?;
        if !OPERATIONS.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old"));
        }
        let event = Again::new()?;
        submitter.register_eventfd(event.as_raw_fd())?;
        submitter.register_files(&[NO_FILE])?;
        let operations = OPERATIONS.iter().map(|code| Restriction::sqe_op(*code));
        let others = [
            Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
            Restriction::register_op(REGISTER_FILES_UPDATE),
        ];
        let mut restrictions: Vec<_> = operations.chain(others).collect();
        submitter.register_restrictions(&mut restrictions)?;
        submitter.register_enable_rings()?;
        Ok(Self { uring, event })
    }
}

/// A ring that serves a disk. Whoever drops it has seen the end of all that was asked of it.
pub(super) struct Lent {
    ring: ManuallyDrop<Ring>,
    home: Rings,
}

impl Deref for Lent {
    type Target = Ring;

    fn deref(&self) -> &Ring {
        &self.ring
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: nobody uses it after this.
        let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        match ring.uring.submitter().register_files_update(FILE.0, &[NO_FILE]) {
            Ok(_) => self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(ring),
            // It is closed, and the file with it.
            Err(error) => log::error!("taking a disk's file from its ring: {error}"),
        }
    }
}

/// The file that a ring serves, as requests name it.
pub(super) const FILE: types::Fixed = types::Fixed(0);
/// Requests that one system call can carry; twice as many can be under way.
pub const ENTRIES: u32 = 128;
/// How many rings are kept for disks that are attached. Each costs about 20 µs at the start, and 20 KiB of the
/// kernel's memory; further disks are served by threads.
pub const SPARE: usize = 4;
/// All that can be asked of a ring, and of its one file only.
const OPERATIONS: [u8; 4] =
    [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
/// The kernel's IORING_REGISTER_FILES_UPDATE: all that can be changed of a ring.
const REGISTER_FILES_UPDATE: u8 = 6;
const NO_FILE: i32 = -1;

#[cfg(test)]
mod tests {
    use std::{io::Write, ptr};

    use io_uring::{opcode, squeue, types};

    use super::{FILE, OPERATIONS, Ring, Rings};

    /// What the kernel answers to one request.
    fn ask(ring: &mut Ring, entry: &squeue::Entry) -> i32 {
        // SAFETY: what the entries of these tests point at outlives the request, which ends here.
        unsafe { ring.uring.submission().push(entry) }.unwrap();
        ring.uring.submit_and_wait(1).unwrap();
        ring.uring.completion().next().unwrap().result()
    }

    #[allow(clippy::print_stderr, reason = "whoever runs the tests should know what was not tested")]
    fn ring() -> Option<Ring> {
        Ring::new().inspect_err(|error| eprintln!("SKIPPED: no io_uring: {error}")).ok()
    }

    #[test]
    fn a_ring_does_nothing_but_serve_its_file() {
        let Some(mut ring) = ring() else { return };
        // IORING_OP_LAST is 65 in Linux 6.18.
        for code in (0..70).filter(|code| !OPERATIONS.contains(code)) {
            let mut entry = opcode::Nop::new().build().flags(squeue::Flags::FIXED_FILE);
            // SAFETY: the first byte of an entry is its operation, and any is sound.
            unsafe { ptr::from_mut(&mut entry).cast::<u8>().write(code) };
            let answer = ask(&mut ring, &entry);
            // One that this kernel has not is no operation.
            assert!([-libc::EACCES, -libc::EINVAL].contains(&answer), "operation {code}: {answer}");
        }
        let openat = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build();
        let socket = opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build();
        for entry in [openat, socket] {
            let entry = entry.flags(squeue::Flags::FIXED_FILE);
            assert_eq!(ask(&mut ring, &entry), -libc::EACCES);
        }
    }

    #[test]
    fn a_ring_works_on_no_file_but_its_own() {
        let Some(mut ring) = ring() else { return };
        let mut byte = [0_u8];
        let iovec = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let by_number = types::Fd(std::os::fd::AsRawFd::as_raw_fd(&file));
        let entry = opcode::Readv::new(by_number, &raw const iovec, 1).build();
        assert_eq!(ask(&mut ring, &entry), -libc::EACCES);
        let entry = opcode::Readv::new(FILE, &raw const iovec, 1).build();
        assert_eq!(ask(&mut ring, &entry), -libc::EBADF, "it has none yet");
    }

    #[test]
    fn a_ring_cannot_be_changed() {
        let Some(ring) = ring() else { return };
        let refused = |result: std::io::Result<()>| {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES));
        };
        let submitter = ring.uring.submitter();
        refused(submitter.register_files(&[0]));
        refused(submitter.unregister_files());
        refused(submitter.register_eventfd(0));
        refused(submitter.unregister_eventfd());
        refused(submitter.register_personality().map(drop));
        refused(submitter.register_restrictions(&mut []));
        refused(submitter.register_iowq_max_workers(&mut [0, 0]));
    }

    #[test]
    fn a_ring_comes_back_without_the_file_and_serves_the_next() {
        let rings = Rings::make(1);
        if rings.is_empty() {
            return;
        }
        for text in ["one", "two"] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let mut lent = rings.lend(&file).unwrap().unwrap();
            assert!(rings.is_empty() && rings.lend(&file).unwrap().is_none());
            let mut read = [0_u8; 3];
            let iovec = libc::iovec { iov_base: read.as_mut_ptr().cast(), iov_len: 3 };
            let entry = opcode::Readv::new(FILE, &raw const iovec, 1).build();
            assert_eq!(ask(&mut lent, &entry), 3);
            assert_eq!(read, text.as_bytes());
            drop(lent);
            assert!(!rings.is_empty());
        }
        let mut ring = rings.0.lock().unwrap().pop().unwrap();
        let entry = opcode::Fsync::new(FILE).build();
        assert_eq!(ask(&mut ring, &entry), -libc::EBADF, "the file was let go of");
    }
}
