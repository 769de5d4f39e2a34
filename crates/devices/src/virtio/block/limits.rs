//! What a block device tells of itself (virtio 1.2 section 5.2.4), and holds its driver to.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

/// The unit of every sector number, whatever the block size.
pub(super) const SECTOR: u64 = 512;
const SECTOR_U32: u32 = 512;
/// The most pieces of data in one request: a queue's descriptors but for header and status. A piece
/// that crosses two memory regions counts twice, so one is spared.
pub(super) const SEGMENTS_MAX: usize = 254;
const SEGMENTS_OFFERED: u32 = 253;
/// The most bytes of a piece that drivers are offered. Those of Linux make none that is larger anyhow.
const SEGMENT_BYTES_OFFERED: u32 = 1 << 20;
/// The most bytes of one request, as the two offers have it: what is being read and written cannot be ended
/// before its time, and a reset waits for it.
pub(super) const DATA_BYTES_MAX: u64 = SEGMENTS_OFFERED as u64 * SEGMENT_BYTES_OFFERED as u64;
/// The most sectors in one discard or write-zeroes: 2 GiB.
const RANGE_SECTORS_MAX: u32 = 1 << 22;
/// Pages of guests and blocks of file systems are 4 KiB: 2^3 sectors.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// A disk as its driver may use it.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    /// The most sectors of one discard, if any are taken.
    pub(super) discard_sectors: Option<u32>,
    /// The most sectors of one write-zeroes, if any are taken.
    pub(super) write_zeroes_sectors: Option<u32>,
    discard_granularity: u32,
    pub(super) queues: u16,
}

impl Limits {
    pub(super) fn new(capacity: u64, discard_granularity: Option<u32>, read_only: bool, queues: u16) -> Self {
        let range = (!read_only).then_some(RANGE_SECTORS_MAX);
        Self {
            sectors: capacity / SECTOR,
            read_only,
            discard_sectors: range.filter(|_| discard_granularity.is_some()),
            write_zeroes_sectors: range,
            discard_granularity: discard_granularity.unwrap_or(0),
            queues,
        }
    }

    /// The disk has become larger.
    pub(super) fn grow(&mut self, capacity: u64) {
        self.sectors = capacity / SECTOR;
    }

    /// The byte at which `count` sectors from `sector` on begin, if the disk has them all.
    pub(super) fn offset(&self, sector: u64, count: u64) -> Option<u64> {
        let end = sector.checked_add(count)?;
        if end > self.sectors { None } else { sector.checked_mul(SECTOR) }
    }

    pub(super) fn features(&self) -> u64 {
        let offered = [
            (VIRTIO_BLK_F_SIZE_MAX, true),
            (VIRTIO_BLK_F_SEG_MAX, true),
            (VIRTIO_BLK_F_BLK_SIZE, true),
            (VIRTIO_BLK_F_TOPOLOGY, true),
            (VIRTIO_BLK_F_FLUSH, true),
            (VIRTIO_BLK_F_RO, self.read_only),
            (VIRTIO_BLK_F_DISCARD, self.discard_sectors.is_some()),
            (VIRTIO_BLK_F_WRITE_ZEROES, self.write_zeroes_sectors.is_some()),
            (VIRTIO_BLK_F_MQ, self.queues > 1),
        ];
        offered.iter().filter(|(_, on)| *on).fold(0, |bits, (bit, _)| bits | 1 << bit)
    }

    /// What is best read and written at once, where the disk is kept in pieces larger than usual: a cluster
    /// of an image. Zero says nothing.
    fn optimal_blocks(&self) -> u32 {
        let blocks = self.discard_granularity / SECTOR_U32;
        if blocks > 1 << PHYSICAL_BLOCK_EXP { blocks } else { 0 }
    }

    /// `struct virtio_blk_config`.
    pub(super) fn config(&self) -> Vec<u8> {
        let discard = self.discard_sectors.unwrap_or(0);
        let zeroes = self.write_zeroes_sectors.unwrap_or(0);
        let granules = self.discard_granularity / SECTOR_U32;
        let mut bytes = Vec::with_capacity(CONFIG_LEN);
        bytes.extend(self.sectors.to_le_bytes());
        bytes.extend(SEGMENT_BYTES_OFFERED.to_le_bytes()); // size_max
        bytes.extend(SEGMENTS_OFFERED.to_le_bytes());
        bytes.extend([0; 4]); // geometry
        bytes.extend(SECTOR_U32.to_le_bytes());
        bytes.extend([PHYSICAL_BLOCK_EXP, 0]);
        bytes.extend((1u16 << PHYSICAL_BLOCK_EXP).to_le_bytes()); // min_io_size, blocks
        bytes.extend(self.optimal_blocks().to_le_bytes()); // opt_io_size, blocks
        bytes.extend([0, 0]); // writeback
        bytes.extend(self.queues.to_le_bytes());
        bytes.extend(discard.to_le_bytes());
        bytes.extend(u32::from(discard > 0).to_le_bytes()); // max_discard_seg
        bytes.extend(granules.max(1).to_le_bytes()); // discard_sector_alignment
        bytes.extend(zeroes.to_le_bytes());
        bytes.extend(u32::from(zeroes > 0).to_le_bytes()); // max_write_zeroes_seg
        bytes.extend([u8::from(self.discard_sectors.is_some()), 0, 0, 0]); // write_zeroes_may_unmap
        bytes
    }
}

const CONFIG_LEN: usize = 60;
