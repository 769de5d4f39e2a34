//! A block request as the driver writes it (virtio 1.2 section 5.2.6): 16 bytes of header, data, and
//! one byte for the status. How these are spread over descriptors says nothing.

use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::GuestAddress;

use super::{
    backend::Operation,
    limits::{DATA_BYTES_MAX, Limits, SECTOR, SEGMENTS_MAX},
};
use crate::{
    Memory,
    virtio::{Buffers, queue::Chain},
};

/// A request, taken apart and checked.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The chain's head, to give it back by.
    pub(super) head: u16,
    /// Where the status goes.
    pub(super) status: GuestAddress,
    /// What to do.
    pub(super) work: Work,
}

#[derive(Debug)]
pub(super) enum Work {
    /// For the disk to do.
    Disk(Operation),
    /// Answer with the serial number into this buffer.
    Serial(Buffers),
    /// Nothing to do but to answer so.
    Answer(Status),
}

/// The status byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Status {
    Ok,
    Error,
    Unsupported,
}

impl Status {
    pub(super) fn byte(self) -> u8 {
        let code = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::Error => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        code.to_le_bytes()[0]
    }
}

/// Empty buffers that keep their allocations for the next requests.
#[derive(Default)]
pub(super) struct Spares(Vec<Buffers>);

impl Spares {
    fn take(&mut self, memory: &Arc<Memory>) -> Buffers {
        self.0.pop().unwrap_or_else(|| Buffers::new(Arc::clone(memory)))
    }

    /// Keep an allocation, unless there are many or it is large.
    pub(super) fn keep(&mut self, mut buffers: Buffers) {
        if self.0.len() < SPARES_MAX && buffers.capacity() <= SPARE_SEGMENTS_MAX {
            buffers.clear();
            self.0.push(buffers);
        }
    }
}

/// Take a request apart. None: the chain has no place for a status, so it cannot be answered.
pub(super) fn parse(
    chain: Chain,
    limits: &Limits,
    memory: &Arc<Memory>,
    spares: &mut Spares,
) -> Option<Parsed> {
    let head = chain.head_index();
    let (mut readable, mut writable) = (spares.take(memory), spares.take(memory));
    let (status, outcome) = Buffers::gather(chain, &mut readable, &mut writable);
    let status = status?;
    let work = match outcome {
        Ok(()) => {
            writable.truncate(writable.len().saturating_sub(1));
            understand(readable, writable, limits, spares).unwrap_or_else(Work::Answer)
        }
        Err(_) => Work::Answer(Status::Error),
    };
    Some(Parsed { head, status, work })
}

fn understand(
    mut readable: Buffers,
    writable: Buffers,
    limits: &Limits,
    spares: &mut Spares,
) -> Result<Work, Status> {
    let mut header = [0; HEADER_LEN];
    if readable.read_at(0, &mut header) != HEADER_LEN {
        return Err(Status::Error);
    }
    readable.advance(HEADER_LEN as u64);
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);

    let operation = match u32::from_le_bytes([a, b, c, d]) {
        VIRTIO_BLK_T_IN => {
            let offset = place(&writable, &readable, sector, limits)?;
            spares.keep(readable);
            Operation::Read { offset, buffers: writable }
        }
        VIRTIO_BLK_T_OUT => {
            writing(limits)?;
            let offset = place(&readable, &writable, sector, limits)?;
            spares.keep(writable);
            Operation::Write { offset, buffers: readable }
        }
        VIRTIO_BLK_T_FLUSH => Operation::Flush,
        VIRTIO_BLK_T_GET_ID => {
            return if writable.len() == u64::from(VIRTIO_BLK_ID_BYTES) {
                Ok(Work::Serial(writable))
            } else {
                Err(Status::Error)
            };
        }
        VIRTIO_BLK_T_DISCARD => {
            writing(limits)?;
            let range = range(&readable, limits.discard_sectors, limits)?;
            if range.flags != 0 {
                return Err(Status::Unsupported);
            }
            Operation::Discard { offset: range.offset, len: range.len }
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            writing(limits)?;
            let range = range(&readable, limits.write_zeroes_sectors, limits)?;
            if range.flags & !FLAG_UNMAP != 0 {
                return Err(Status::Unsupported);
            }
            let unmap = range.flags & FLAG_UNMAP != 0;
            Operation::WriteZeroes { offset: range.offset, len: range.len, unmap }
        }
        _ => return Err(Status::Unsupported),
    };
    match operation {
        Operation::Read { ref buffers, .. } | Operation::Write { ref buffers, .. } if buffers.is_empty() => {
            Err(Status::Ok)
        }
        Operation::Discard { len: 0, .. } | Operation::WriteZeroes { len: 0, .. } => Err(Status::Ok),
        operation => Ok(Work::Disk(operation)),
    }
}

fn writing(limits: &Limits) -> Result<(), Status> {
    if limits.read_only { Err(Status::Error) } else { Ok(()) }
}

/// The byte at which `data` begins on the disk. Data in the wrong direction is refused, and more of it than a
/// driver is offered.
fn place(data: &Buffers, wrong: &Buffers, sector: u64, limits: &Limits) -> Result<u64, Status> {
    let fits = data.segments() <= SEGMENTS_MAX && data.len() <= DATA_BYTES_MAX;
    if !wrong.is_empty() || !fits || !data.len().is_multiple_of(SECTOR) {
        return Err(Status::Error);
    }
    limits.offset(sector, data.len() / SECTOR).ok_or(Status::Error)
}

struct Range {
    offset: u64,
    len: u64,
    flags: u32,
}

/// The one `virtio_blk_discard_write_zeroes` of a request; `max` is none where it is not offered.
fn range(data: &Buffers, max: Option<u32>, limits: &Limits) -> Result<Range, Status> {
    let max = max.ok_or(Status::Unsupported)?;
    let mut segment = [0; SEGMENT_LEN];
    if data.len() != SEGMENT_LEN as u64 || data.read_at(0, &mut segment) != SEGMENT_LEN {
        return Err(Status::Error);
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = segment;
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    if sectors > max {
        return Err(Status::Error);
    }
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let offset = limits.offset(sector, u64::from(sectors)).ok_or(Status::Error)?;
    Ok(Range { offset, len: u64::from(sectors) * SECTOR, flags: u32::from_le_bytes(flags) })
}

const HEADER_LEN: usize = 16;
const SEGMENT_LEN: usize = 16;
const FLAG_UNMAP: u32 = 1;
const SPARES_MAX: usize = 64;
const SPARE_SEGMENTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::GuestAddress;

    use super::{Buffers, DATA_BYTES_MAX, Limits, Status, place};
    use crate::Memory;

    #[test]
    fn as_much_as_is_offered_and_no_more() {
        const MIB: u64 = 1 << 20;
        let memory: Arc<Memory> = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap());
        let limits = Limits::new(1 << 40, None, false, 1);
        let mut data = Buffers::new(Arc::clone(&memory));
        // The same memory again and again, in pieces larger than was asked for.
        (0..31).for_each(|_| data.push(GuestAddress(0), 8 << 20).unwrap());
        data.push(GuestAddress(0), 5 << 20).unwrap();
        assert_eq!(data.len(), DATA_BYTES_MAX);
        assert_eq!(data.len(), 253 * MIB);
        let none = Buffers::new(Arc::clone(&memory));
        assert_eq!(place(&data, &none, 8, &limits), Ok(4096));
        data.push(GuestAddress(0), 512).unwrap();
        assert_eq!(place(&data, &none, 8, &limits), Err(Status::Error));
    }
}
