use std::{collections::BTreeMap, fs, process::Command};

use expect_test::{Expect, expect};

use super::*;

fn platform(cpus: u8) -> Platform {
    Platform { cpus, pci_window_64: Some(0x10_0000_0000..0x18_0000_0000), pci_slots: 5..7 }
}

/// Follows the pointers as a guest does, checking every sum: signature to table.
fn walk(area: &[u8]) -> BTreeMap<String, &[u8]> {
    let at = |address: u64| &area[usize::try_from(address - layout::ACPI_TABLES.start).unwrap()..];
    let table = |address: u64| {
        let bytes = at(address);
        let table = &bytes[..u32_at(bytes, 4) as usize];
        assert_eq!(sum(table), 0, "checksum of {:?}", String::from_utf8_lossy(&table[..4]));
        (String::from_utf8(table[..4].to_vec()).unwrap(), table)
    };
    let rsdp = &at(RSDP)[..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    let (signature, xsdt) = table(u64_at(rsdp, 24));
    assert_eq!(signature, "XSDT");
    let mut tables: BTreeMap<_, _> =
        xsdt[36..].chunks(8).map(|entry| table(u64::from_le_bytes(entry.try_into().unwrap()))).collect();
    let dsdt = table(u64_at(tables["FACP"], 140));
    tables.extend([dsdt]);
    tables
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Writes a table into a folder and has `iasl` turn it into source.
fn disassemble(folder: &std::path::Path, signature: &str, table: &[u8]) -> String {
    fs::write(folder.join("table.aml"), table).unwrap();
    iasl(folder, &["-d", "table.aml"]);
    let source = fs::read_to_string(folder.join("table.dsl")).unwrap();
    assert!(source.contains(signature));
    source
}

fn iasl(folder: &std::path::Path, arguments: &[&str]) -> String {
    let output = Command::new("iasl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("this test needs iasl: apt-get install acpica-tools");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "iasl {arguments:?}: {text}");
    text
}

/// Compares the lines of a disassembly that hold one of the words, without offsets and comments.
fn check(signature: &str, wanted: &[&str], expected: &Expect) {
    let bytes = tables(&platform(2)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let source = disassemble(folder.path(), signature, walk(&bytes)[signature]);
    let strip = |line: &str| {
        let value = line.split_once("] ").map_or(line, |(_offset, rest)| rest);
        let value = value.split("//").next().unwrap_or_default();
        value.split("/*").next().unwrap_or_default().trim().to_owned() + "\n"
    };
    let lines: String = source
        .lines()
        .filter(|line| !line.starts_with(" *") && wanted.iter().any(|word| line.contains(word)))
        .map(strip)
        .collect();
    expected.assert_eq(&lines);
}

#[test]
fn a_guest_finds_every_table_and_every_sum_is_right() {
    for cpus in [1, 2, 64] {
        let bytes = tables(&platform(cpus)).unwrap();
        let found: Vec<_> = walk(&bytes).into_keys().collect();
        assert_eq!(found, ["APIC", "DSDT", "FACP", "MCFG"]);
        assert!(bytes.len() as u64 <= layout::ACPI_TABLES.end - layout::ACPI_TABLES.start);
    }
}

#[test]
fn the_same_platform_gives_the_same_bytes() {
    assert_eq!(tables(&platform(3)).unwrap(), tables(&platform(3)).unwrap());
}

#[test]
fn impossible_platforms_are_refused() {
    for cpus in [0, 65, 255] {
        assert_eq!(tables(&platform(cpus)), Err(TablesError::Cpus { cpus, max: 64 }));
    }
}

#[test]
fn an_empty_64_bit_window_is_no_window() {
    let none = tables(&Platform { pci_window_64: None, ..platform(1) }).unwrap();
    assert_eq!(tables(&Platform { pci_window_64: Some(7..7), ..platform(1) }).unwrap(), none);
}

/// What the ACPI project's own compiler makes of the program: nothing is wrong, and it gives the
/// same bytes again.
#[test]
fn the_dsdt_survives_disassembly_and_compilation() {
    for platform in [platform(1), platform(64), Platform { cpus: 2, pci_window_64: None, pci_slots: 1..32 }] {
        let bytes = tables(&platform).unwrap();
        let dsdt = walk(&bytes)["DSDT"].to_vec();
        let folder = tempfile::tempdir().unwrap();
        disassemble(folder.path(), "DSDT", &dsdt);
        let said = iasl(folder.path(), &["-p", "again", "table.dsl"]);
        assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
        let again = fs::read(folder.path().join("again.aml")).unwrap();
        assert_eq!(dsdt[36..], again[36..], "the compiler encodes the same program otherwise");
    }
}

/// The ACPI project's own interpreter, whose registers all read as the bits of `filled`, tells the guest of an
/// event: whom it notifies of what.
fn notified(filled: u8) -> Vec<String> {
    let bytes = tables(&platform(1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("dsdt.aml"), walk(&bytes)["DSDT"]).unwrap();
    let output = Command::new("acpiexec")
        .args(["-r", "-fv", &format!("{filled:#x}"), "-b", r"execute \_SB.GED._EVT 16"])
        .arg("dsdt.aml")
        .current_dir(folder.path())
        .output()
        .expect("this test needs acpiexec: apt-get install acpica-tools");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("Error"), "{text}");
    // `... Notify on [S005] 0x55748bbeada0 Value 0x01 (Device Check)`
    let notify = |line: &str| {
        let (device, rest) = line.split_once(" Notify on [")?.1.split_once(']')?;
        Some(format!("{device}: {}", rest.split_once(" Value ")?.1))
    };
    text.lines().filter_map(notify).collect()
}

#[test]
fn events_reach_their_devices() {
    expect![[r#"
        [
            "PWRB: 0x80 (Status Change)",
            "S005: 0x01 (Device Check)",
            "S005: 0x03 (Eject Request)",
            "S006: 0x01 (Device Check)",
            "S006: 0x03 (Eject Request)",
            "VGEN: 0x80 (Status Change)",
        ]
    "#]]
    .assert_debug_eq(&notified(0xff));
    expect![[r#"
        []
    "#]]
    .assert_debug_eq(&notified(0));
    expect![[r#"
        [
            "S005: 0x01 (Device Check)",
            "S005: 0x03 (Eject Request)",
        ]
    "#]]
    .assert_debug_eq(&notified(0x22));
}

#[test]
fn the_dsdt_describes_the_machine() {
    check(
        "DSDT",
        &[
            "Device (",
            "_HID",
            "_UID",
            "_ADR",
            "_SUN",
            "EJCT",
            "FILL",
            "WANT",
            "CHNG",
            "_S5",
            "_STA",
            "Notify",
            "PEND",
            "Method",
            "0x",
            "If (",
            "CDW",
            "Interrupt (",
        ],
        &expect![[r#"
            DefinitionBlock ("", "DSDT", 2, "EC2VMM", "EC2VMM  ", 0x00000001)
            Name (_S5, Package (0x04)
            0x05,
            Device (PCI0)
            Name (_HID, EisaId ("PNP0A08")
            Name (_UID, Zero)
            0x0000,
            0x0000,
            0x0000,
            0x0000,
            0x0001,
            0x00000000,
            0xC0000000,
            0xDFFFFFFF,
            0x00000000,
            0x20000000,
            0x0000000000000000,
            0x0000001000000000,
            0x00000017FFFFFFFF,
            0x0000000000000000,
            0x0000000800000000,
            Method (_OSC, 4, Serialized)
            CreateDWordField (Arg3, Zero, CDW1)
            If ((Arg0 == ToUUID ("33db4d5b-1ff7-401c-9657-7441c03dd766")
            CreateDWordField (Arg3, 0x08, CDW3)
            Local0 = (CDW3 & 0x1C)
            If ((Arg1 != One))
            CDW1 |= 0x08
            If ((CDW3 != Local0))
            CDW1 |= 0x10
            CDW3 = Local0
            CDW1 |= 0x04
            OperationRegion (SLTR, SystemIO, 0x0604, 0x0C)
            FILL,   32,
            WANT,   32,
            EJCT,   32
            Device (S005)
            Name (_ADR, 0x00050000)
            Name (_SUN, 0x05)
            Method (_EJ0, 1, Serialized)
            EJCT = 0x20
            Device (S006)
            Name (_ADR, 0x00060000)
            Name (_SUN, 0x06)
            Method (_EJ0, 1, Serialized)
            EJCT = 0x40
            Method (CHNG, 0, Serialized)
            Local0 = FILL
            Local1 = WANT
            If ((Local0 & 0x20))
            Notify (S005, One)
            If ((Local1 & 0x20))
            Notify (S005, 0x03)
            If ((Local0 & 0x40))
            Notify (S006, One)
            If ((Local1 & 0x40))
            Notify (S006, 0x03)
            Device (MBRD)
            Name (_HID, EisaId ("PNP0C02")
            Name (_UID, Zero)
            0xE0000000,
            0x00100000,
            0x0600,
            0x0600,
            0x01,
            0x03,
            0x0604,
            0x0604,
            0x01,
            0x0C,
            0x0CF9,
            0x0CF9,
            0x01,
            0x01,
            Device (COM1)
            Name (_HID, EisaId ("PNP0501")
            Name (_UID, Zero)
            0x03F8,
            0x03F8,
            0x01,
            0x08,
            Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, )
            0x00000004,
            Device (RTC)
            Name (_HID, EisaId ("PNP0B00")
            Name (_UID, Zero)
            0x0070,
            0x0070,
            0x01,
            0x02,
            Device (PWRB)
            Name (_HID, EisaId ("PNP0C0C")
            Name (_UID, Zero)
            Device (VGEN)
            Name (_HID, "EC2V0001")
            Name (ADDR, Package (0x02)
            0x000D0100,
            Device (GED)
            Name (_HID, "ACPI0013"
            Name (_UID, Zero)
            Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, )
            0x00000010,
            OperationRegion (EVTR, SystemIO, 0x0602, One)
            PEND,   8
            Method (_EVT, 1, Serialized)
            Local0 = PEND
            If ((Local0 & One))
            Notify (PWRB, 0x80)
            If ((Local0 & 0x02))
            ^^PCI0.CHNG ()
            If ((Local0 & 0x80))
            Notify (VGEN, 0x80)
            Device (C000)
            Name (_HID, "ACPI0007"
            Name (_UID, Zero)
            Name (_STA, 0x0F)
            Device (C001)
            Name (_HID, "ACPI0007"
            Name (_UID, One)
            Name (_STA, 0x0F)
        "#]],
    );
}

#[test]
fn the_fadt_claims_no_legacy_hardware() {
    check(
        "FACP",
        &[
            "PM Profile",
            "Boot Flags",
            "Flags (dec",
            "Supported",
            "Present",
            "Button",
            "Headless",
            "Reduced",
            "cause",
            "RTC wake",
            "Century",
            "Register",
            "0CF9",
            "0600",
            "0601",
            "DSDT Address",
            "Event Block Addr",
            "Timer Block Addr",
        ],
        &expect![[r#"
            DSDT Address : 00000000
            PM Profile : 04 [Enterprise Server]
            PM1A Event Block Address : 00000000
            PM1B Event Block Address : 00000000
            PM Timer Block Address : 00000000
            RTC Century Index : 32
            Boot Flags (decoded below) : 0014
            Legacy Devices Supported (V2) : 0
            8042 Present on ports 60/64 (V2) : 0
            VGA Not Present (V4) : 1
            MSI Not Supported (V4) : 0
            PCIe ASPM Not Supported (V4) : 1
            CMOS RTC Not Present (V5) : 0
            Flags (decoded below) : 00101471
            Control Method Power Button (V1) : 1
            Control Method Sleep Button (V1) : 1
            RTC wake not in fixed reg space (V1) : 1
            Docking Supported (V1) : 0
            Reset Register Supported (V2) : 1
            Headless - No Video (V3) : 1
            PCIEXP_WAK Bits Supported (V4) : 0
            Hardware Reduced (V5) : 1
            Reset Register : [Generic Address Structure]
            Address : 0000000000000CF9
            Value to cause reset : 06
            ARM Flags (decoded below) : 0000
            DSDT Address : 00000000000E0030
            Sleep Control Register : [Generic Address Structure]
            Address : 0000000000000600
            Sleep Status Register : [Generic Address Structure]
            Address : 0000000000000601
        "#]],
    );
}

#[test]
fn the_madt_lists_every_processor() {
    check(
        "APIC",
        &["Subtable", "ocessor", "pic ", "Address", "Interrupt", "PC-AT", "LINT"],
        &expect![[r#"
        Local Apic Address : FEE00000
        PC-AT Compatibility : 0
        Subtable Type : 00 [Processor Local APIC]
        Processor ID : 00
        Local Apic ID : 00
        Processor Enabled : 1
        Subtable Type : 00 [Processor Local APIC]
        Processor ID : 01
        Local Apic ID : 01
        Processor Enabled : 1
        Subtable Type : 01 [I/O APIC]
        I/O Apic ID : 00
        Address : FEC00000
        Interrupt : 00000000
        Subtable Type : 04 [Local APIC NMI]
        Processor ID : FF
        Interrupt Input LINT : 01
    "#]],
    );
}

#[test]
fn the_mcfg_points_to_configuration_space() {
    check(
        "MCFG",
        &["Base", "Segment", "Bus"],
        &expect![[r#"
        Base Address : 00000000E0000000
        Segment Group Number : 0000
        Start Bus Number : 00
        End Bus Number : 00
    "#]],
    );
}
