//! The blocks of a file system, as they would be after its journal was replayed.

use std::collections::BTreeMap;
use std::io;

use crate::window::Window;

/// Blocks by number.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    window: Window,
    size: u64,
    count: u64,
    /// Blocks whose newest contents lie in the journal.
    replaced: BTreeMap<u64, Copy>,
}

/// The newest contents of a block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Copy {
    /// The block of the journal that holds them.
    pub(super) block: u64,
    /// The first four bytes were cleared, because they are those of the journal's own blocks.
    pub(super) escaped: bool,
}

impl Blocks {
    pub(super) fn new(window: Window, size: u64, count: u64) -> Self {
        Self { window, size, count, replaced: BTreeMap::new() }
    }

    pub(super) fn replace(&mut self, replaced: BTreeMap<u64, Copy>) {
        self.replaced = replaced;
    }

    /// Block size, bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Reads from byte `offset` of the file system, across blocks.
    pub(super) fn read_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.count * self.size) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a block number beyond the file system"));
        }
        while !buffer.is_empty() {
            let block = offset / self.size;
            let within = offset % self.size;
            let len = buffer.len() as u64;
            let last = (offset + len - 1) / self.size;
            let next = self.replaced.range(block..=last).next();
            let (chunk, copy) = match next {
                Some((&at, copy)) if at == block => (len.min(self.size - within), Some(copy)),
                Some((&at, _)) => (at * self.size - offset, None),
                None => (len, None),
            };
            let (now, rest) = buffer.split_at_mut(usize::try_from(chunk).unwrap_or_default());
            match copy {
                None => self.window.read_at(now, offset)?,
                Some(copy) => self.read_copy(now, copy, within)?,
            }
            buffer = rest;
            offset += chunk;
        }
        Ok(())
    }

    fn read_copy(&self, buffer: &mut [u8], copy: &Copy, within: u64) -> io::Result<()> {
        self.window.read_at(buffer, copy.block * self.size + within)?;
        if copy.escaped {
            for (at, byte) in (within..).zip(buffer.iter_mut()).take_while(|(at, _)| *at < 4) {
                let magic = super::journal::MAGIC.to_be_bytes();
                *byte = usize::try_from(at).ok().and_then(|at| magic.get(at)).copied().unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Charges what will be kept in memory to the budget.
    pub(super) fn charge(&self, items: u64) -> io::Result<()> {
        self.window.charge(items.saturating_mul(ITEM_COST))
    }

    /// One whole block.
    pub(super) fn read(&self, block: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.size).unwrap_or_default()];
        self.read_at(&mut bytes, block.saturating_mul(self.size))?;
        Ok(bytes)
    }
}

/// What keeping one item costs: with the budget of a search, some two million can be kept.
const ITEM_COST: u64 = 2048;
