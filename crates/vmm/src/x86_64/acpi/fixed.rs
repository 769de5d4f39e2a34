//! The tables that are plain data: FADT, MADT, MCFG, XSDT.

use acpi_tables::{
    Aml, AmlSink,
    fadt::{FADT, FADTBuilder, Flags, PmProfile},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, ProcessorLocalApic},
    mcfg::MCFG,
    sdt::Sdt,
    xsdt::XSDT,
};

use super::{below_4_gib, registers::RESET_VALUE};
use crate::x86_64::layout;

/// Who made the tables.
pub(super) const OEM_ID: [u8; 6] = *b"EC2VMM";
/// For which machine.
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"EC2VMM  ";
/// In which version.
pub(super) const OEM_REVISION: u32 = 1;

/// Fixed ACPI Description Table (ACPI 6.5, 5.2.9).
pub(super) fn fadt(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        // Set means: not a fixed-hardware button; the DSDT has one, or there is none.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.century = CENTURY_INDEX;
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | NO_ASPM).into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.finalize()
}

/// Multiple APIC Description Table (ACPI 6.5, 5.2.12). ISA lines reach the IOAPIC pin of their own
/// number, so no line needs an override.
pub(super) fn madt(cpus: u8) -> Sdt {
    let mut entries = Vec::new();
    for cpu in 0..cpus {
        ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled).to_aml_bytes(&mut entries);
    }
    // The id that KVM's IOAPIC has at reset.
    IoApic::new(0, const { below_4_gib(layout::IOAPIC) }, 0).to_aml_bytes(&mut entries);
    LocalApicNmi.to_aml_bytes(&mut entries);

    let mut madt = Sdt::new(*b"APIC", MADT_HEADER_BYTES, MADT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(MADT_LAPIC_ADDRESS_OFFSET, const { below_4_gib(layout::LAPIC) });
    // The flags stay 0: no pair of 8259 to be switched off.
    madt.append_slice(&entries);
    madt
}

/// PCI configuration space (PCI Firmware Specification 3.3, 4.1.2).
pub(super) fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, layout::PCI_BUS_LAST);
    mcfg
}

/// Extended System Description Table (ACPI 6.5, 5.2.8).
pub(super) fn xsdt(tables: &[u64]) -> XSDT {
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for &address in tables {
        xsdt.add_entry(address);
    }
    xsdt
}

/// LINT1 of every processor is its NMI line (ACPI 6.5, 5.2.12.7), as PCs have it.
struct LocalApicNmi;

impl Aml for LocalApicNmi {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const ALL_PROCESSORS: u8 = 0xff;
        const LINT1: u8 = 1;
        sink.vec(&[4, 6, ALL_PROCESSORS, 0, 0, LINT1]);
    }
}

/// A register of one byte.
fn port(number: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, number.into())
}

/// Where the clock's memory holds the century, as PCs have it.
const CENTURY_INDEX: u8 = 0x32;

// IAPC_BOOT_ARCH (ACPI 6.5, table 5.11). Left clear: LEGACY_DEVICES, 8042, and CMOS_RTC_NOT_PRESENT,
// because there is a clock.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const NO_ASPM: u16 = 1 << 4;

const MADT_HEADER_BYTES: u32 = 44;
const MADT_LAPIC_ADDRESS_OFFSET: usize = 36;
const MADT_REVISION: u8 = 6;
