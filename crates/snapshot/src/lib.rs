//! The files of a machine's snapshot, without the machine: how they say what they are, which belong together, and
//! how one is made of several. What a state holds but for its name and size is `ec2vmm-vmm`'s.
//!
//! Invariant: what is read from the files is believed by nobody; time and memory are bounded by the size that the
//! reader expects.

mod bitmap;
mod chain;
mod memory_file;
mod merge;
mod state_file;

pub use self::{
    bitmap::Bitmap,
    chain::check_chain,
    memory_file::{MemoryFileError, MemoryWriter, PAGE_BYTES, Tail, read_tail},
    merge::{MergeError, merge},
    state_file::{Head, STATE_BYTES_MAX, StateFileError, read_document, read_head, write_document},
};

/// The checksum of all files.
pub const CRC: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_XZ);
