//! PCI: one bus of functions, found by ECAM, reached by memory, heard by MSI-X.
//!
//! Everything here is the control path, called on vCPU threads: a function sits behind a lock of its
//! own, and neither a kick nor an interrupt passes through it once the driver runs.

pub mod bus;
pub mod msix;
pub mod registers;
pub mod virtio;

pub use bus::{ECAM_LEN, InsertError, PciBus, SLOTS};
pub use msix::MsiMessage;
pub use virtio::{Link, VirtioFunction, Wiring};

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::state::{BadState, Hex};

/// One function of one device.
///
/// No access may panic, whatever its offset or length: a guest chooses both.
pub trait PciFunction: Send {
    /// Reads configuration space from `offset` (0 to 4,095).
    fn config_read(&mut self, offset: u16, data: &mut [u8]);
    /// Writes configuration space at `offset` (0 to 4,095).
    fn config_write(&mut self, offset: u16, data: &[u8]);
    /// The addresses at which the function answers now; none while COMMAND.MEM is off.
    fn region(&self) -> Option<Range<u64>>;
    /// Reads the function's memory, `offset` bytes into its region.
    fn mmio_read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes the function's memory, `offset` bytes into its region.
    fn mmio_write(&mut self, offset: u64, data: &[u8]);
    /// As born.
    fn reset(&mut self);
    /// What it has to remember in a snapshot.
    fn save(&self) -> FunctionState;
    /// From as born to as it was saved.
    ///
    /// # Errors
    /// The state is not one that this function can be in. What it is in then is of no use.
    fn restore(&mut self, saved: &FunctionState) -> Result<(), BadState>;
}

/// A function in a snapshot.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct FunctionState {
    /// Configuration space, 256 bytes.
    pub registers: Hex,
    /// Of a virtio function.
    #[serde(default)]
    pub virtio: Option<virtio::Saved>,
}
