//! What a network card needs of the cable it is plugged into.

use std::{io, os::fd::RawFd};

use crate::virtio::Buffers;

/// One end of an Ethernet cable. Every frame has a `virtio_net_hdr_v1` of [`HEADER_LEN`] bytes before
/// it (virtio 1.2 section 5.1.6), little-endian, both ways; in it the count of buffers means nothing.
pub trait Port: Send {
    /// Readable when a frame waits, writable when one can be sent (edge-triggered).
    fn descriptor(&self) -> RawFd;

    /// All that [`Self::set_offloads`] and [`Self::send`] can take.
    fn offloads(&self) -> Offloads;

    /// Whether the cable brings frames here. Those of the same cable share its frames; one that is switched
    /// off has none.
    ///
    /// # Errors
    /// The host refuses.
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()>;

    /// From now on frames that need these may be received.
    ///
    /// # Errors
    /// The host refuses: frames then come as before.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Take the next frame, header first, into `buffers` and from where these end into `spill`.
    /// Returns its length; what found no room in either is lost. Never blocks. `buffers` has at most
    /// [`PIECES_MAX`] pieces.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: there is none. All else: the cable is broken, perhaps for a while.
    fn receive(&mut self, buffers: &Buffers, spill: &mut [u8]) -> io::Result<usize>;

    /// Send a frame, header first. Never blocks. It has at most [`PIECES_MAX`] pieces.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: not now. All else: this frame cannot be sent.
    fn send(&mut self, frame: &Buffers) -> io::Result<()>;
}

/// Work on frames that one side leaves to the other.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offloads {
    /// Checksums are left out.
    pub checksum: bool,
    /// TCP over IPv4 comes in pieces larger than the MTU.
    pub tso4: bool,
    /// TCP over IPv6 comes in pieces larger than the MTU.
    pub tso6: bool,
    /// Such pieces may have the CWR bit of explicit congestion notification set.
    pub ecn: bool,
    /// UDP comes in pieces larger than the MTU.
    pub uso: bool,
}

impl Offloads {
    /// Frames can be larger than the MTU.
    pub(super) fn are_large(self) -> bool {
        self.tso4 || self.tso6 || self.uso
    }
}

/// The length of the header before each frame, bytes.
pub const HEADER_LEN: u64 = 12;
/// The most pieces of memory that a frame lies in.
pub const PIECES_MAX: usize = 1000;
