//! A queue of a tap as the port of a network card. Its frames have virtio's header, so nothing is translated.

#![allow(unsafe_code, reason = "the kernel is given pointers")]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        raw::{c_int, c_uint},
    },
};

use ec2vmm_devices::virtio::{
    Buffers,
    net::{HEADER_LEN, Offloads, PIECES_MAX, Port},
};

/// A queue of an open tap, made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR` and, if it has several, with
/// `IFF_MULTI_QUEUE`.
pub struct Tap {
    file: File,
    offloads: Offloads,
    /// The tap gives it frames.
    enabled: bool,
    iovecs: Iovecs,
}

/// Scratch for one call, empty between calls.
struct Iovecs(Vec<libc::iovec>);

// SAFETY: the list is empty but during a call, so no pointer ever goes to another thread.
unsafe impl Send for Iovecs {}

impl Tap {
    /// Uses a tap for this network card: nonblocking, with headers of 12 bytes, offloading nothing yet.
    ///
    /// # Errors
    /// It is no such tap, or the kernel is too old.
    pub fn new(file: File) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&file, true)?;
        let header = c_int::try_from(HEADER_LEN).unwrap_or(c_int::MAX);
        // SAFETY: the kernel reads an int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })?;
        // The header's numbers are little-endian, also where the host's are not.
        let yes: c_int = 1;
        // SAFETY: the kernel reads an int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETLE, &raw const yes) })?;

        let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };
        // Linux has had segmented UDP since 6.2; the rest for ever.
        let known = [all, Offloads { uso: false, ..all }];
        let offloads = known.into_iter().find(|offloads| set_offload(&file, *offloads).is_ok());
        set_offload(&file, Offloads::default())?;
        let iovecs = Iovecs(Vec::with_capacity(IOVECS_USUAL));
        Ok(Self { file, offloads: offloads.unwrap_or_default(), enabled: true, iovecs })
    }
}

impl Port for Tap {
    fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        // The kernel refuses to do what is done, and all of it on a tap with one queue.
        if enabled != self.enabled {
            set_queue(&self.file, enabled)?;
            self.enabled = enabled;
        }
        Ok(())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        set_offload(&self.file, offloads)
    }

    fn receive(&mut self, buffers: &Buffers, spill: &mut [u8]) -> io::Result<usize> {
        self.iovecs.point_at(buffers);
        if self.iovecs.0.len() == buffers.segments() {
            self.iovecs.0.push(libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() });
        }
        let fd = self.file.as_raw_fd();
        // SAFETY: the list points at guest memory that `buffers` keeps mapped, and at `spill`, which is
        // borrowed for writing; both outlive the call. Guest memory is memory that others write anyway.
        let result = self.iovecs.call(|list, count| unsafe { libc::readv(fd, list, count) });
        self.iovecs.0.clear();
        buffers.mark_written(result.as_ref().map_or(0, |len| *len as u64));
        result
    }

    fn send(&mut self, frame: &Buffers) -> io::Result<()> {
        self.iovecs.point_at(frame);
        let fd = self.file.as_raw_fd();
        // SAFETY: the list points at guest memory that `frame` keeps mapped, and the kernel only reads it.
        let result = self.iovecs.call(|list, count| unsafe { libc::writev(fd, list, count) });
        self.iovecs.0.clear();
        // A tap takes a frame whole or not at all.
        result.map(drop)
    }
}

impl Iovecs {
    fn point_at(&mut self, buffers: &Buffers) {
        let pieces = buffers.slices().take(PIECES_MAX);
        self.0.clear();
        self.0.extend(pieces.map(|piece| libc::iovec {
            iov_base: piece.ptr_guard_mut().as_ptr().cast(),
            iov_len: piece.len(),
        }));
    }

    fn call(&self, act: impl FnOnce(*const libc::iovec, c_int) -> isize) -> io::Result<usize> {
        let count = c_int::try_from(self.0.len()).unwrap_or(0);
        // Negative is failure, and the only thing that does not fit.
        usize::try_from(act(self.0.as_ptr(), count)).map_err(|_| io::Error::last_os_error())
    }
}

fn set_offload(tap: &File, offloads: Offloads) -> io::Result<()> {
    let Offloads { checksum, tso4, tso6, ecn, uso } = offloads;
    let flags = [
        (checksum, libc::TUN_F_CSUM),
        (tso4, libc::TUN_F_TSO4),
        (tso6, libc::TUN_F_TSO6),
        (ecn, libc::TUN_F_TSO_ECN),
        (uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ];
    let bits: c_uint = flags.iter().filter(|(on, _)| *on).fold(0, |bits, (_, flag)| bits | flag);
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) })
}

#[allow(clippy::cast_possible_truncation, reason = "flags of 16 bits")]
fn set_queue(tap: &File, attach: bool) -> io::Result<()> {
    // SAFETY: all zeroes is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flags = if attach { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads one request.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

fn check(answer: c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A frame of 64 KiB in buffers of a page's half.
const IOVECS_USUAL: usize = 48;
