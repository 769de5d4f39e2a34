//! Packets of virtio-vsock (virtio 1.2 section 5.10.6): a header of 44 bytes, and data after it.

use crate::virtio::Buffers;

/// A packet's header.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of data after the header.
    pub(super) len: u32,
    /// The type of socket.
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// How many bytes the sender can take in all.
    pub(super) buf_alloc: u32,
    /// How many bytes the sender has handed on so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

/// The two ends of a stream: unique among those of one guest.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

impl Header {
    /// The header at the beginning of `buffers`, if they hold one.
    pub(super) fn read(buffers: &Buffers) -> Option<Self> {
        let mut bytes = [0; HEADER_LEN];
        if buffers.read_at(0, &mut bytes) != HEADER_LEN {
            return None;
        }
        let mut rest = Fields(&bytes);
        Some(Self {
            src_cid: u64::from_le_bytes(rest.take()?),
            dst_cid: u64::from_le_bytes(rest.take()?),
            src_port: u32::from_le_bytes(rest.take()?),
            dst_port: u32::from_le_bytes(rest.take()?),
            len: u32::from_le_bytes(rest.take()?),
            kind: u16::from_le_bytes(rest.take()?),
            op: u16::from_le_bytes(rest.take()?),
            flags: u32::from_le_bytes(rest.take()?),
            buf_alloc: u32::from_le_bytes(rest.take()?),
            fwd_cnt: u32::from_le_bytes(rest.take()?),
        })
    }

    /// The bytes of it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let Self { src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt } = self;
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend(src_cid.to_le_bytes());
        bytes.extend(dst_cid.to_le_bytes());
        bytes.extend(src_port.to_le_bytes());
        bytes.extend(dst_port.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(op.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(buf_alloc.to_le_bytes());
        bytes.extend(fwd_cnt.to_le_bytes());
        bytes
    }

    /// What the host answers to a packet of a stream that is not: reset it.
    pub(super) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: OP_RST,
            ..Self::default()
        }
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}

pub(super) const HEADER_LEN: usize = 44;
/// The host's context id.
pub(super) const CID_HOST: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub(super) const KIND_STREAM: u16 = 1;
pub(super) const OP_REQUEST: u16 = 1;
pub(super) const OP_RESPONSE: u16 = 2;
pub(super) const OP_RST: u16 = 3;
pub(super) const OP_SHUTDOWN: u16 = 4;
pub(super) const OP_RW: u16 = 5;
pub(super) const OP_CREDIT_UPDATE: u16 = 6;
pub(super) const OP_CREDIT_REQUEST: u16 = 7;
/// The sender of a shutdown will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of a shutdown will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
