//! The document that a machine process is born with. What is taken can be written and read again, and what
//! is within the limits of the contract has tables and a memory map.

#![no_main]

use ec2vmm_vmm::{
    builder, slots, smbios,
    x86_64::{acpi, layout},
};
use ec2vmm_vmm_api::MachineConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(config) = serde_json::from_slice::<MachineConfig>(input) else { return };
    let text = serde_json::to_vec(&config).expect("a document");
    assert_eq!(serde_json::from_slice::<MachineConfig>(&text).expect("the same document"), config);
    if builder::check(&config).is_err() {
        return;
    }
    let MachineConfig { cpus, memory_mib, identity, .. } = &config;
    let map = layout::memory_map(*memory_mib);
    assert!(map.is_sorted_by_key(|region| region.start));
    for bits in [36, 48, 52] {
        let window = layout::pci_window_64(*memory_mib, bits);
        assert!(window.is_none_or(|window| window.end <= 1 << bits));
    }
    let platform = acpi::Platform { cpus: *cpus, pci_window_64: None, pci_slots: slots::PLUGGABLE };
    assert!(acpi::tables(&platform).is_ok_and(|tables| tables.len() as u64 <= 0x1_0000));
    // Names may be too long for it.
    if let Ok(tables) = smbios::tables(identity, *cpus, *memory_mib) {
        assert!(tables.len() as u64 <= layout::SMBIOS.end - layout::SMBIOS.start);
    }
});
