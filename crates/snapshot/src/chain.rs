//! Which memory files belong together.

use uuid::Uuid;

use crate::memory_file::{MemoryFileError, Tail};

/// A full file, then differences, each to the one before, the last of them the snapshot's of this name.
///
/// # Errors
/// [`MemoryFileError::Chain`].
pub fn check_chain<'a>(id: Uuid, tails: impl Iterator<Item = &'a Tail>) -> Result<(), MemoryFileError> {
    let mut last = None;
    for tail in tails {
        match (last, tail.parent) {
            (None, Some(_)) => return Err(MemoryFileError::Chain("the first memory file is a difference")),
            (Some(_), None) => return Err(MemoryFileError::Chain("a second memory file is a full one")),
            (Some(before), Some(parent)) if before != parent => {
                return Err(MemoryFileError::Chain("a memory file is a difference to another snapshot's"));
            }
            _ => last = Some(tail.id),
        }
    }
    if last != Some(id) {
        return Err(MemoryFileError::Chain("the memory is another snapshot's than the state"));
    }
    Ok(())
}
