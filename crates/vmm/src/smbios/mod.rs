//! SMBIOS (DSP0134 3.0): what the machine says of itself. cloud-init chooses its data source by it,
//! and `dmidecode` and `lshw` show it.
//!
//! Invariant: the bytes depend on nothing but the arguments, and a guest reads the same texts and the
//! same UUID that were given.

mod structure;
mod structures;

use std::ops::Range;

use ec2vmm_vmm_api::config::Identity;
use thiserror::Error;

use crate::x86_64::layout;

/// Why there are no tables.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum TablesError {
    /// A text that the tables cannot hold.
    #[error("{field} {text:?}: not 1 to {TEXT_BYTES_MAX} printable ASCII characters")]
    Text {
        /// Which.
        field: &'static str,
        /// The text.
        text: String,
    },
    /// The tables do not fit their place.
    #[error("SMBIOS tables take {bytes} bytes, and their place has {limit}")]
    TooLarge {
        /// What they take.
        bytes: u64,
        /// What there is.
        limit: u64,
    },
}

/// The bytes to place at the start of [`layout::SMBIOS`]: the 64-bit entry point, then the structure
/// table. `cpus` are all in one socket; `memory_mib` is at [`layout::ram`].
///
/// # Errors
/// [`TablesError`].
pub fn tables(identity: &Identity, cpus: u8, memory_mib: u64) -> Result<Vec<u8>, TablesError> {
    tables_at(&System { identity, cpus, ram: &layout::ram(memory_mib) }, &layout::SMBIOS)
}

/// What the tables say.
#[derive(Clone, Copy, Debug)]
struct System<'a> {
    /// UUID, names, asset tag.
    identity: &'a Identity,
    /// vCPUs, all in one socket.
    cpus: u8,
    /// Guest-physical addresses of memory, each a whole number of KiB.
    ram: &'a [Range<u64>],
}

fn tables_at(system: &System<'_>, place: &Range<u64>) -> Result<Vec<u8>, TablesError> {
    check_text("manufacturer", &system.identity.manufacturer)?;
    check_text("product", &system.identity.product)?;
    if let Some(tag) = &system.identity.asset_tag {
        check_text("asset tag", tag)?;
    }
    let mut table = Vec::new();
    for structure in structures::all(system) {
        structure.append_to(&mut table);
    }
    let (bytes, limit) = ((TABLE_OFFSET + table.len()) as u64, place.end.saturating_sub(place.start));
    let table_bytes = match u32::try_from(table.len()) {
        Ok(table_bytes) if bytes <= limit => table_bytes,
        _ => return Err(TablesError::TooLarge { bytes, limit }),
    };
    let mut placed = entry_point(table_bytes, place.start + TABLE_OFFSET as u64);
    placed.append(&mut table);
    Ok(placed)
}

/// 64-bit entry point (5.2.2), padded to [`TABLE_OFFSET`].
fn entry_point(table_bytes: u32, table_address: u64) -> Vec<u8> {
    let mut entry = b"_SM3_".to_vec();
    let [major, minor, revision] = VERSION;
    entry.extend([0, ENTRY_POINT_BYTES, major, minor, revision, ENTRY_POINT_REVISION, 0]);
    entry.extend(table_bytes.to_le_bytes());
    entry.extend(table_address.to_le_bytes());
    let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = entry.get_mut(CHECKSUM_OFFSET) {
        *checksum = sum.wrapping_neg();
    }
    entry.extend([0; TABLE_OFFSET - ENTRY_POINT_BYTES as usize]);
    entry
}

/// Refuses what a guest would read otherwise than it was given. Guests trim spaces at both ends.
fn check_text(field: &'static str, text: &str) -> Result<(), TablesError> {
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if printable && (1..=TEXT_BYTES_MAX).contains(&text.len()) && text.trim() == text {
        return Ok(());
    }
    Err(TablesError::Text { field, text: text.chars().take(TEXT_BYTES_MAX).collect() })
}

const TEXT_BYTES_MAX: usize = 64;
const VERSION: [u8; 3] = [3, 0, 0];
const ENTRY_POINT_BYTES: u8 = 24;
const ENTRY_POINT_REVISION: u8 = 1;
const CHECKSUM_OFFSET: usize = 5;
/// From the entry point to the table; also how `dmidecode` lays out a dump.
const TABLE_OFFSET: usize = 32;

#[cfg(test)]
mod tests;
