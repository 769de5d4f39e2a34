//! Against a real tap, in a network of its own that goes away with the test's thread.
#![allow(unsafe_code, reason = "making a network is not the machine's job, so there is no safe way here")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::{
    fs::{File, OpenOptions},
    io,
    net::UdpSocket,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    sync::Arc,
    thread,
};

use ec2vmm_devices::{
    Memory,
    virtio::{
        Buffers,
        net::{HEADER_LEN, Offloads, Port},
    },
};
use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::{Bytes, GuestAddress};

use super::Tap;

const NAME: &[u8] = b"test0";
const ADDRESS: [u8; 4] = [10, 99, 0, 1];
const PEER: [u8; 4] = [10, 99, 0, 2];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Runs a test with a tap that has an address and is up. Not without the rights to make one.
fn with_tap(test: impl FnOnce(File) + Send + 'static) {
    with_queues(1, |mut queues| test(queues.remove(0)));
}

/// The same with several queues.
#[allow(clippy::print_stderr, reason = "whoever runs the tests should know what was not tested")]
fn with_queues(count: usize, test: impl FnOnce(Vec<File>) + Send + 'static) {
    let outcome = thread::spawn(move || match make_tap(count) {
        Ok(queues) => test(queues),
        Err(error) => eprintln!("taps are not tested, none can be made here: {error}"),
    });
    outcome.join().unwrap();
}

fn make_tap(count: usize) -> io::Result<Vec<File>> {
    // SAFETY: only this thread is moved, and it ends with the test.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let several = if count > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    let queue = || {
        let tun =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        set(tun.as_raw_fd(), libc::TUNSETIFF, |request| request.ifr_ifru.ifru_flags = flags as i16)?;
        Ok(tun)
    };
    let queues = (0..count).map(|_| queue()).collect::<io::Result<_>>()?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    set(socket.as_raw_fd(), libc::SIOCSIFADDR, |request| {
        request.ifr_ifru.ifru_addr.sa_family = libc::AF_INET as u16;
        for (to, from) in request_address(request).iter_mut().zip(ADDRESS) {
            *to = from as libc::c_char;
        }
    })?;
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    set(socket.as_raw_fd(), libc::SIOCSIFFLAGS, |request| request.ifr_ifru.ifru_flags = up as i16)?;
    Ok(queues)
}

/// The four bytes of an IPv4 address in a request.
fn request_address(request: &mut libc::ifreq) -> &mut [libc::c_char] {
    // SAFETY: the union is plain bytes, of which these are initialised.
    unsafe { &mut request.ifr_ifru.ifru_addr.sa_data[2..6] }
}

fn set(fd: i32, what: libc::Ioctl, fill: impl FnOnce(&mut libc::ifreq)) -> io::Result<()> {
    // SAFETY: all zeroes is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = *from as libc::c_char;
    }
    fill(&mut request);
    // SAFETY: the kernel reads and writes one request.
    check(unsafe { libc::ioctl(fd, what, &raw mut request) })
}

fn check(answer: i32) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn memory() -> Arc<Memory> {
    Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

fn buffers(memory: &Arc<Memory>, pieces: &[(u64, u32)]) -> Buffers {
    let mut buffers = Buffers::new(Arc::clone(memory));
    for &(address, len) in pieces {
        buffers.push(GuestAddress(address), len).unwrap();
    }
    buffers
}

/// A broadcast ARP request for the host's address, with a virtio header.
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0xff; 6]);
    frame.extend(MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(MAC);
    frame.extend(PEER);
    frame.extend([0; 6]);
    frame.extend(ADDRESS);
    frame
}

/// Receives until a frame of this type comes: the host also sends what nobody asked for.
fn receive(tap: &mut Tap, room: &Buffers, spill: &mut [u8], ether_type: [u8; 2], file: &File) -> usize {
    loop {
        match tap.receive(room, spill) {
            Ok(len) => {
                let mut frame = vec![0; len];
                let done = room.read_at(0, &mut frame);
                frame[done..].copy_from_slice(&spill[..len - done]);
                if frame[HEADER_LEN as usize + 12..][..2] == ether_type {
                    return len;
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                poll(&mut [PollFd::new(file, PollFlags::IN)], None).unwrap();
            }
        }
    }
}

#[test]
fn the_host_answers_through_the_tap() {
    with_tap(|file| {
        let memory = memory();
        let other = file.try_clone().unwrap();
        let mut tap = Tap::new(file).unwrap();
        assert!(tap.offloads().checksum && tap.offloads().tso4 && tap.offloads().tso6);
        tap.set_offloads(Offloads { checksum: true, tso4: true, ..Offloads::default() }).unwrap();

        let request = arp_request();
        memory.write_slice(&request, GuestAddress(0x1000)).unwrap();
        tap.send(&buffers(&memory, &[(0x1000, 5), (0x1005, request.len() as u32 - 5)])).unwrap();

        // Into three pieces, and the rest into the spill.
        let room = buffers(&memory, &[(0x2000, 12), (0x3000, 14), (0x4000, 10)]);
        let mut spill = [0; 2048];
        let len = receive(&mut tap, &room, &mut spill, [8, 6], &other);
        assert_eq!(len, 12 + 42);
        let mut head = [0; 14];
        memory.read_slice(&mut head, GuestAddress(0x3000)).unwrap();
        assert_eq!(head[..6], MAC);
        let mut arp = [0; 10];
        memory.read_slice(&mut arp, GuestAddress(0x4000)).unwrap();
        assert_eq!(arp[..8], [0, 1, 8, 0, 6, 4, 0, 2], "an answer");
        assert_eq!(spill[4..8], ADDRESS);
    });
}

#[test]
fn a_large_datagram_comes_whole() {
    with_tap(|file| {
        let memory = memory();
        let other = file.try_clone().unwrap();
        let mut tap = Tap::new(file).unwrap();
        // The request teaches the host where the peer is.
        let socket = UdpSocket::bind((std::net::Ipv4Addr::from(ADDRESS), 0)).unwrap();
        memory.write_slice(&arp_request(), GuestAddress(0)).unwrap();
        tap.send(&buffers(&memory, &[(0, arp_request().len() as u32)])).unwrap();
        socket.send_to(&[7; 1400], (std::net::Ipv4Addr::from(PEER), 9)).unwrap();
        let room = buffers(&memory, &[(0x1000, 4096)]);
        let len = receive(&mut tap, &room, &mut [0; 64], [8, 0], &other);
        assert_eq!(len, 12 + 14 + 20 + 8 + 1400);
    });
}

#[test]
fn a_tap_that_is_down_is_an_error_not_the_end() {
    with_tap(|file| {
        let memory = memory();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut tap = Tap::new(file).unwrap();
        set(socket.as_raw_fd(), libc::SIOCSIFFLAGS, |request| request.ifr_ifru.ifru_flags = 0).unwrap();
        memory.write_slice(&arp_request(), GuestAddress(0)).unwrap();
        let error = tap.send(&buffers(&memory, &[(0, 54)])).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    });
}

#[test]
fn what_is_no_tap_is_refused() {
    assert!(Tap::new(tempfile::tempfile().unwrap()).is_err());
}

/// Has the host send datagrams of many flows to the peer; gives how many come by each queue.
fn spread(memory: &Arc<Memory>, taps: &mut [Tap]) -> Vec<usize> {
    let socket = || UdpSocket::bind((std::net::Ipv4Addr::from(ADDRESS), 0)).unwrap();
    for _ in 0..FLOWS {
        socket().send_to(&[7; 100], (std::net::Ipv4Addr::from(PEER), 9)).unwrap();
    }
    let room = buffers(memory, &[(0x1000, 4096)]);
    let come = |tap: &mut Tap| {
        let mut datagrams = 0;
        while let Ok(len) = tap.receive(&room, &mut [0; 64]) {
            datagrams += usize::from(len == HEADER_LEN as usize + 14 + 20 + 8 + 100);
        }
        datagrams
    };
    taps.iter_mut().map(come).collect()
}

const FLOWS: usize = 200;

#[test]
fn frames_are_spread_over_the_queues_that_are_switched_on() {
    with_queues(3, |queues| {
        let memory = memory();
        let mut taps: Vec<Tap> = queues.into_iter().map(|queue| Tap::new(queue).unwrap()).collect();
        // The request teaches the host where the peer is.
        memory.write_slice(&arp_request(), GuestAddress(0)).unwrap();
        taps[0].send(&buffers(&memory, &[(0, arp_request().len() as u32)])).unwrap();
        for (on, expected) in [(1, [true, false, false]), (3, [true; 3]), (2, [true, true, false])] {
            for (index, tap) in taps.iter_mut().enumerate() {
                tap.set_enabled(index < on).unwrap();
                tap.set_enabled(index < on).unwrap();
            }
            let come = spread(&memory, &mut taps);
            assert_eq!(come.iter().sum::<usize>(), FLOWS, "{come:?}");
            assert_eq!(come.iter().map(|&count| count > 0).collect::<Vec<_>>(), expected, "{come:?}");
        }
        let offloads = Offloads { checksum: true, ..Offloads::default() };
        taps.iter_mut().for_each(|tap| tap.set_offloads(offloads).unwrap());
    });
}

#[test]
fn a_tap_with_one_queue_is_always_on() {
    with_tap(|file| {
        let mut tap = Tap::new(file).unwrap();
        tap.set_enabled(true).unwrap();
        assert!(tap.set_enabled(false).is_err());
        assert!(tap.offloads().checksum);
    });
}
