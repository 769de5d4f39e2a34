//! A part of a disk, read within a budget.
//!
//! All reading that a stranger's data structures can ask for goes through a window, and its budget ends
//! what would never end.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use crate::disk::Disk;

/// `size` bytes of a disk from byte `start`.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    disk: Disk,
    start: u64,
    size: u64,
    budget: Budget,
    /// The last small block read: tables are read entry by entry.
    recent: Rc<RefCell<Recent>>,
}

/// Bytes that may still be read, shared by all windows of one search.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Rc<Cell<u64>>);

#[derive(Debug, Default)]
struct Recent {
    start: u64,
    bytes: Vec<u8>,
}

impl Budget {
    /// Enough for every table and configuration file of a large disk, its kernel and its initrds.
    pub(crate) fn new() -> Self {
        Self(Rc::new(Cell::new(BUDGET_BYTES)))
    }

    fn spend(&self, bytes: u64) -> io::Result<()> {
        let left = self.0.get().checked_sub(bytes.max(COST_MIN)).ok_or_else(|| {
            // Only structures that a stranger made up lead here, not the host.
            let message = format!("gave up after reading {} MiB", BUDGET_BYTES >> 20);
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?;
        self.0.set(left);
        Ok(())
    }
}

impl Window {
    /// The part of `disk` that starts at byte `start`; cut off at the end of the disk.
    pub(crate) fn new(disk: &Disk, start: u64, size: u64, budget: &Budget) -> Self {
        let size = size.min(disk.size().saturating_sub(start));
        Self { disk: disk.clone(), start, size, budget: budget.clone(), recent: Rc::default() }
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from byte `offset` of the window.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.size);
        if end.is_none() {
            let message = format!("{} bytes from byte {offset} are not there", buffer.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        if buffer.len() >= RECENT_BYTES {
            self.budget.spend(buffer.len() as u64)?;
            return self.disk.read_at(buffer, self.start + offset);
        }
        let mut recent = self.recent.borrow_mut();
        if recent.copy_to(buffer, offset) {
            // Not read again, but looked at again.
            self.budget.spend(buffer.len() as u64)?;
        } else {
            let start = offset - offset % SMALL_ALIGN;
            let len = (RECENT_BYTES as u64 + SMALL_ALIGN).min(self.size - start);
            self.budget.spend(len)?;
            let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
            self.disk.read_at(&mut bytes, self.start + start)?;
            *recent = Recent { start, bytes };
            if !recent.copy_to(buffer, offset) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Charges `bytes` to the budget, for what costs memory rather than reading.
    pub(crate) fn charge(&self, bytes: u64) -> io::Result<()> {
        self.budget.spend(bytes)
    }

    /// The `len` bytes from byte `offset` of the window.
    pub(crate) fn read_vec(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

impl Recent {
    fn copy_to(&self, buffer: &mut [u8], offset: u64) -> bool {
        let at = offset.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        let source = at.and_then(|at| self.bytes.get(at..)?.get(..buffer.len()));
        source.inspect(|source| buffer.copy_from_slice(source)).is_some()
    }
}

const BUDGET_BYTES: u64 = 4 << 30;
/// What a read costs at least: many small reads take time too.
const COST_MIN: u64 = 512;
const RECENT_BYTES: usize = 16 * 1024;
const SMALL_ALIGN: u64 = 512;
