use std::{fs, process::Command};

use expect_test::{Expect, expect};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const PLACE: Range<u64> = 0..0x1_0000;

fn identity() -> Identity {
    Identity {
        uuid: Uuid::parse_str("ec2e1916-9099-7caf-fd21-012345abcdef").unwrap(),
        manufacturer: "Amazon EC2".to_owned(),
        product: "t3.medium".to_owned(),
        asset_tag: Some("i-0123456789abcdef0".to_owned()),
    }
}

/// What `dmidecode` reads from the tables. At address 0 they are a dump as it writes one.
fn dmidecode(cpus: u8, memory_mib: u64, arguments: &[&str]) -> String {
    let ram = layout::ram(memory_mib);
    let bytes = tables_at(&System { identity: &identity(), cpus, ram: &ram }, &PLACE).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    fs::write(&dump, bytes).unwrap();
    let output = Command::new("dmidecode")
        .arg("--from-dump")
        .arg(&dump)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .expect("this test needs dmidecode: apt-get install dmidecode");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap()
}

fn check(cpus: u8, memory_mib: u64, arguments: &[&str], words: &[&str], expected: &Expect) {
    let lines: String = dmidecode(cpus, memory_mib, arguments)
        .lines()
        .filter(|line| words.iter().any(|word| line.contains(word)))
        .map(|line| line.trim().to_owned() + "\n")
        .collect();
    expected.assert_eq(&lines);
}

#[test]
fn names_are_what_was_given() {
    for (keyword, value) in [
        ("system-uuid", "ec2e1916-9099-7caf-fd21-012345abcdef"),
        ("system-serial-number", "ec2e1916-9099-7caf-fd21-012345abcdef"),
        ("system-manufacturer", "Amazon EC2"),
        ("system-product-name", "t3.medium"),
        ("bios-vendor", "Amazon EC2"),
        ("baseboard-asset-tag", "i-0123456789abcdef0"),
        ("chassis-asset-tag", "i-0123456789abcdef0"),
    ] {
        assert_eq!(dmidecode(2, 1024, &["--string", keyword]), format!("{value}\n"), "{keyword}");
    }
}

#[test]
fn every_structure_is_understood() {
    let words = [
        "DMI type",
        "Vendor",
        "Manufacturer",
        "Product Name",
        "Serial",
        "UUID",
        "Asset",
        "virtual",
        "ACPI",
        "Status",
        "Core",
        "Thread",
        "Capacity",
        "Size",
        "Locator",
        "Range",
        "Handle:",
    ];
    check(
        2,
        1024,
        &[],
        &words,
        &expect![[r#"
        Handle 0x0000, DMI type 0, 24 bytes
        Vendor: Amazon EC2
        Runtime Size: 64 kB
        ROM Size: 64 kB
        ACPI is supported
        System is a virtual machine
        Handle 0x0100, DMI type 1, 27 bytes
        Manufacturer: Amazon EC2
        Product Name: t3.medium
        Serial Number: ec2e1916-9099-7caf-fd21-012345abcdef
        UUID: ec2e1916-9099-7caf-fd21-012345abcdef
        Handle 0x0200, DMI type 2, 15 bytes
        Manufacturer: Amazon EC2
        Product Name: Not Specified
        Serial Number: Not Specified
        Asset Tag: i-0123456789abcdef0
        Chassis Handle: 0x0300
        Handle 0x0300, DMI type 3, 22 bytes
        Manufacturer: Amazon EC2
        Serial Number: Not Specified
        Asset Tag: i-0123456789abcdef0
        Security Status: Unknown
        Handle 0x0400, DMI type 4, 48 bytes
        Manufacturer: Amazon EC2
        Status: Populated, Enabled
        L1 Cache Handle: Not Provided
        L2 Cache Handle: Not Provided
        L3 Cache Handle: Not Provided
        Serial Number: Not Specified
        Asset Tag: Not Specified
        Core Count: 2
        Core Enabled: 2
        Thread Count: 2
        Handle 0x1000, DMI type 16, 23 bytes
        Maximum Capacity: 1 GB
        Error Information Handle: Not Provided
        Handle 0x1100, DMI type 17, 40 bytes
        Array Handle: 0x1000
        Error Information Handle: Not Provided
        Size: 1 GB
        Locator: DIMM 0
        Bank Locator: Not Specified
        Manufacturer: Amazon EC2
        Serial Number: Not Specified
        Asset Tag: Not Specified
        Handle 0x1300, DMI type 19, 31 bytes
        Range Size: 1 GB
        Physical Array Handle: 0x1000
        Handle 0x2000, DMI type 32, 11 bytes
        Status: No errors detected
        Handle 0x7F00, DMI type 127, 4 bytes
    "#]],
    );
}

#[test]
fn large_memory_has_its_size() {
    let words = ["Maximum Capacity", "Size", "Starting", "Ending"];
    check(
        64,
        8 << 20,
        &["-t", "16,17,19"],
        &words,
        &expect![[r#"
        Maximum Capacity: 8 TB
        Size: 8 TB
        Starting Address: 0x00000000000
        Ending Address: 0x000BFFFFFFF
        Range Size: 3 GB
        Starting Address: 0x0000000100000000k
        Ending Address: 0x000008003FFFFFFFk
        Range Size: 8189 GB
    "#]],
    );
}

#[test]
fn texts_that_a_guest_would_read_otherwise_are_refused() {
    let ram = layout::ram(1024);
    for text in ["", " x", "x ", "a\nb", "a\0b", "größe", &"x".repeat(65)] {
        let texts: [fn(&mut Identity, &str); 3] = [
            |identity, text| identity.manufacturer = text.to_owned(),
            |identity, text| identity.product = text.to_owned(),
            |identity, text| identity.asset_tag = Some(text.to_owned()),
        ];
        for set in texts {
            let mut identity = identity();
            set(&mut identity, text);
            let refused = tables_at(&System { identity: &identity, cpus: 1, ram: &ram }, &PLACE);
            assert!(matches!(refused, Err(TablesError::Text { .. })), "{text:?}");
        }
    }
}

#[test]
fn a_place_too_small_is_refused() {
    let (identity, ram) = (identity(), layout::ram(1024));
    let system = System { identity: &identity, cpus: 1, ram: &ram };
    let bytes = tables_at(&system, &PLACE).unwrap().len() as u64;
    assert!(tables_at(&system, &(0..bytes)).is_ok());
    assert_eq!(tables_at(&system, &(0..bytes - 1)), Err(TablesError::TooLarge { bytes, limit: bytes - 1 }));
}

proptest! {
    /// Walks the table as a guest's kernel does, by lengths and double zeroes.
    #[test]
    fn every_table_can_be_walked_to_its_end(
        cpus in 1u8..=64, mib in 1u64..=3072, product in "[!-~]{1,64}", tag: bool, address in 0u64..(1 << 40),
    ) {
        let mut identity = identity();
        identity.product.clone_from(&product);
        if !tag {
            identity.asset_tag = None;
        }
        let place = address << 4..(address << 4) + 0x1_0000;
        let ram = layout::ram(mib);
        let bytes = tables_at(&System { identity: &identity, cpus, ram: &ram }, &place).unwrap();
        prop_assert_eq!(bytes[..24].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        prop_assert_eq!(&bytes[16..24], &(place.start + 32).to_le_bytes());
        let mut rest = &bytes[32..];
        prop_assert_eq!(&bytes[12..16], &u32::try_from(rest.len()).unwrap().to_le_bytes());
        let mut kinds = Vec::new();
        while let [kind, length, ..] = *rest {
            kinds.push(kind);
            let texts = &rest[usize::from(length)..];
            let end = texts.windows(2).position(|pair| pair == [0, 0]).unwrap();
            rest = &texts[end + 2..];
        }
        prop_assert_eq!(kinds, [0, 1, 2, 3, 4, 16, 17, 19, 32, 127]);
        prop_assert!(bytes.windows(product.len()).any(|window| window == product.as_bytes()));
    }
}
