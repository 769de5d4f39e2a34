//! A tap in a network of its own.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    sync::Arc,
};

use ec2vmm_devices::{
    Memory,
    virtio::{
        Buffers,
        net::{Offloads, Port},
    },
};
use ec2vmm_vmm::net::Tap;
use vm_memory::GuestAddress;

/// Has nothing plugged into it.
pub(super) fn make() -> File {
    // SAFETY: this process has one thread, and lives for one test.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) });
    let tap = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let tap = tap.expect("there is a tun driver");
    // SAFETY: all zeroes is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: the kernel reads and writes one request.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) });
    tap
}

pub(super) fn frames(file: File) {
    let mut tap = Tap::new(file).unwrap();
    // As where the driver uses fewer queues, and more again.
    tap.set_enabled(false).unwrap();
    tap.set_enabled(true).unwrap();
    tap.set_offloads(Offloads { checksum: true, ..Offloads::default() }).unwrap();
    let memory: Arc<Memory> = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let mut buffers = Buffers::new(memory);
    buffers.push(GuestAddress(0), 4096).unwrap();
    // The interface is down, and what it says of that is no matter.
    let nothing = tap.receive(&buffers, &mut []).unwrap_err();
    assert!(
        [Some(libc::EAGAIN), Some(libc::EBADFD), Some(libc::EIO)].contains(&nothing.raw_os_error()),
        "{nothing}"
    );
    assert!(tap.send(&buffers).is_err());
}

fn check(answer: libc::c_int) {
    assert!(answer >= 0, "{}", io::Error::last_os_error());
}
