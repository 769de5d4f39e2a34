//! ACPI (6.5): what a guest is told about the machine, and the registers that it finds there.
//!
//! A hardware-reduced machine: there is no PIC, PIT, HPET, PM timer or fixed power button, and no
//! table claims one, so that a guest probes nothing that is not there. Events come through one
//! generic event device, and one byte says which.
//!
//! | table | says |
//! |---|---|
//! | RSDP, XSDT | where the others are |
//! | FADT | hardware-reduced; reset and sleep registers; no VGA, no keyboard controller |
//! | MADT | a local APIC a vCPU, one IOAPIC |
//! | MCFG | where PCI configuration space is |
//! | DSDT | processors, PCI host bridge and its slots, serial port, clock, power button, generation id, events |
//!
//! Invariant: the same [`Platform`] gives the same bytes, and they fit their place.

mod dsdt;
mod fixed;
pub mod generation;
mod hot_plug;
mod registers;

use std::ops::Range;

use acpi_tables::{Aml, rsdp::Rsdp};
use thiserror::Error;

pub use self::{
    hot_plug::HotPlug,
    registers::{Event, RESET_VALUE, Registers, Request},
};
use super::layout;

/// Where the root pointer is: what `boot_params.acpi_rsdp_addr` and `hvm_start_info.rsdp_paddr` say.
pub const RSDP: u64 = layout::ACPI_TABLES.start;

/// What the tables depend on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Platform {
    /// vCPUs, 1 to [`ec2vmm_vmm_api::config::CPUS_MAX`]. The APIC id of vCPU N is N.
    pub cpus: u8,
    /// Where 64-bit base address registers go, if anywhere.
    pub pci_window_64: Option<Range<u64>>,
    /// The slots of PCI bus 0 whose functions come and go, 1 to 31.
    pub pci_slots: Range<u8>,
}

/// Why there are no tables.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum TablesError {
    /// A number of vCPUs that the tables cannot describe.
    #[error("{cpus} vCPUs: ACPI tables describe 1 to {max}")]
    Cpus {
        /// How many were asked for.
        cpus: u8,
        /// How many can be.
        max: u8,
    },
    /// The tables do not fit their place.
    #[error("ACPI tables take {bytes} bytes, and their place has {limit}")]
    TooLarge {
        /// What they take.
        bytes: u64,
        /// What there is.
        limit: u64,
    },
}

/// The bytes to place at the start of [`layout::ACPI_TABLES`]; the RSDP is the first of them.
///
/// # Errors
/// [`TablesError`], where the platform is none that the tables can describe.
pub fn tables(platform: &Platform) -> Result<Vec<u8>, TablesError> {
    let max = ec2vmm_vmm_api::config::CPUS_MAX;
    if !(1..=max).contains(&platform.cpus) {
        return Err(TablesError::Cpus { cpus: platform.cpus, max });
    }
    let mut area = Area::default();
    area.bytes.resize(Rsdp::len(), 0); // its content names the XSDT, which comes last
    let dsdt = area.place(&dsdt::dsdt(platform));
    let listed =
        [area.place(&fixed::fadt(dsdt)), area.place(&fixed::madt(platform.cpus)), area.place(&fixed::mcfg())];
    let xsdt = area.place(&fixed::xsdt(&listed));

    let mut tables = Vec::with_capacity(area.bytes.len());
    Rsdp::new(fixed::OEM_ID, xsdt).to_aml_bytes(&mut tables);
    tables.extend_from_slice(area.bytes.get(Rsdp::len()..).unwrap_or_default());

    let (bytes, limit) = (tables.len() as u64, layout::ACPI_TABLES.end - layout::ACPI_TABLES.start);
    if bytes > limit {
        return Err(TablesError::TooLarge { bytes, limit });
    }
    Ok(tables)
}

/// Tables one after another, from [`layout::ACPI_TABLES`] on.
#[derive(Default)]
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table, aligned, and tells its address.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(TABLE_ALIGN), 0);
        let address = layout::ACPI_TABLES.start + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

/// An address of the layout as the 32-bit fields of the tables hold it. Evaluated by the compiler
/// only, which refuses one that does not fit.
#[expect(clippy::cast_possible_truncation, reason = "asserted")]
const fn below_4_gib(address: u64) -> u32 {
    assert!(address <= u32::MAX as u64);
    address as u32
}

const TABLE_ALIGN: usize = 16;

#[cfg(test)]
mod tests;
