//! Reads a connection, and the descriptors that come along (`SCM_RIGHTS`, unix(7)).
//!
//! Invariant: no request has more than [`DESCRIPTORS_MAX`], and what nobody claims is closed: it is owned
//! from the moment at which it is here.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, ReturnFlags, recvmsg};

/// Descriptors that came with input that is still to be understood.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    /// Each with the place in the input of the last byte that was read with it. The kernel ends a read with
    /// the piece that descriptors were sent with, so that this byte is of that piece.
    waiting: Vec<(usize, OwnedFd)>,
}

/// Why descriptors are refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct TooMany;

impl Descriptors {
    /// Reads what there is into `buffer`, as what follows `input_bytes` of input: nothing yet, the end (0), or
    /// how many bytes.
    pub(super) fn read(
        &mut self,
        stream: &UnixStream,
        input_bytes: usize,
        buffer: &mut [u8],
    ) -> io::Result<Result<Option<usize>, TooMany>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(Ok(None)),
                received => break received?,
            }
        };
        let RecvMsg { bytes, flags, .. } = received;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                let at = (input_bytes + bytes).saturating_sub(1);
                self.waiting.extend(descriptors.map(|descriptor| (at, descriptor)));
            }
        }
        if flags.contains(ReturnFlags::CTRUNC) || self.waiting.len() > DESCRIPTORS_MAX {
            self.waiting.clear();
            return Ok(Err(TooMany));
        }
        Ok(Ok(Some(bytes)))
    }

    /// Those that came with the first `bytes` of the input, which are taken from it.
    pub(super) fn take(&mut self, bytes: usize) -> Vec<OwnedFd> {
        let (ours, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(at, _)| *at < bytes);
        self.waiting = later.into_iter().map(|(at, descriptor)| (at - bytes, descriptor)).collect();
        ours.into_iter().map(|(_, descriptor)| descriptor).collect()
    }

    /// Closes them all.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

/// The most descriptors that come with one request: a file for each layer of a disk.
pub(super) const DESCRIPTORS_MAX: usize = ec2vmm_vmm_api::control::LAYERS_MAX;
