//! The tables' program: what is on the machine, in ACPI's own language (ACPI 6.5, chapters 19 and 20).

use std::ops::Range;

use acpi_tables::{
    Aml, AmlSink,
    aml::{
        AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
        Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local,
        Memory32Fixed, Method, Name, NotEqual, Notify, ONE, OpRegion, OpRegionSpace, Or, Package, Path,
        ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
    },
    sdt::Sdt,
};

use super::{
    Platform, below_4_gib,
    fixed::{OEM_ID, OEM_REVISION, OEM_TABLE_ID},
    hot_plug::mask,
    registers::{Event, SLEEP_TYPE_S5},
};
use crate::x86_64::layout;

/// Differentiated System Description Table.
pub(super) fn dsdt(platform: &Platform) -> Sdt {
    let mut devices = Vec::new();
    pci_host(&mut devices, platform);
    motherboard(&mut devices);
    serial_port(&mut devices);
    clock(&mut devices);
    power_button(&mut devices);
    generation(&mut devices);
    events(&mut devices);
    processors(&mut devices, platform.cpus);

    let mut aml = Vec::new();
    sleep_states(&mut aml);
    aml.extend(Scope::raw("_SB_".into(), devices));

    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// Soft off, and no other sleep state.
fn sleep_states(aml: &mut Vec<u8>) {
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_S5, &0u8, &0u8, &0u8])).to_aml_bytes(aml);
}

fn pci_host(aml: &mut Vec<u8>, platform: &Platform) {
    let buses = AddressSpace::new_bus_number(0u16, layout::PCI_BUS_LAST.into());
    let (start, last) =
        const { (below_4_gib(layout::PCI_WINDOW_32.start), below_4_gib(layout::PCI_WINDOW_32.end - 1)) };
    let window_32 =
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, last, None::<u32>);
    let window_64 = platform.pci_window_64.as_ref().filter(|window| !window.is_empty()).map(|window| {
        let (start, last) = (window.start, window.end - 1);
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, last, None::<u64>)
    });
    let mut resources: Vec<&dyn Aml> = vec![&buses, &window_32];
    if let Some(window_64) = &window_64 {
        resources.push(window_64);
    }
    Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            &operating_system_capabilities(),
            &slots(&platform.pci_slots),
        ],
    )
    .to_aml_bytes(aml);
}

/// The slots whose functions come and go, and how a guest learns of that: `CHNG` tells it of every slot
/// that has changed.
///
/// A slot has no `_STA`: guests then look into configuration space whether something is there, and need
/// not ask a register for each slot at each boot.
fn slots(slots: &Range<u8>) -> Encoded {
    let mut aml = Vec::new();
    registers(
        "SLTR",
        layout::SLOT_PORTS.start,
        SLOT_PORTS_LEN,
        FieldAccessType::DWord,
        &[(*b"FILL", 32), (*b"WANT", 32), (*b"EJCT", 32)],
        &mut aml,
    );
    let mut changes = Vec::new();
    for slot in slots.clone() {
        let (name, mask) = (format!("S{slot:03}"), mask(slot));
        let number = u32::from(slot);
        Device::new(
            Path::new(&name),
            vec![
                &Name::new("_ADR".into(), &(number << 16)),
                &Name::new("_SUN".into(), &number),
                &Method::new("_EJ0".into(), 1, true, vec![&Store::new(&Path::new("EJCT"), &mask)]),
            ],
        )
        .to_aml_bytes(&mut aml);
        changes.push(notify_if(0, mask, &name, DEVICE_CHECK));
        changes.push(notify_if(1, mask, &name, EJECT_REQUEST));
    }
    let (filled, wanted) = (Path::new("FILL"), Path::new("WANT"));
    let (read_filled, read_wanted) = (Store::new(&Local(0), &filled), Store::new(&Local(1), &wanted));
    let mut body: Vec<&dyn Aml> = vec![&read_filled, &read_wanted];
    body.extend(changes.iter().map(|change| change as &dyn Aml));
    Method::new("CHNG".into(), 0, true, body).to_aml_bytes(&mut aml);
    Encoded(aml)
}

/// `If (LocalN & mask) { Notify (device, value) }`
fn notify_if(local: u8, mask: u32, device: &str, value: u8) -> Encoded {
    let mut aml = Vec::new();
    If::new(&And::new(&ZERO, &Local(local), &mask), vec![&Notify::new(&Path::new(device), &value)])
        .to_aml_bytes(&mut aml);
    Encoded(aml)
}

/// Registers in ports, one behind the other.
fn registers(
    region: &str,
    start: u16,
    len: u8,
    access: FieldAccessType,
    names: &[([u8; 4], usize)],
    aml: &mut Vec<u8>,
) {
    let fields = names.iter().map(|&(name, bits)| FieldEntry::Named(name, bits)).collect();
    OpRegion::new(region.into(), OpRegionSpace::SystemIO, &start, &len).to_aml_bytes(aml);
    Field::new(region.into(), access, FieldLockRule::NoLock, FieldUpdateRule::WriteAsZeroes, fields)
        .to_aml_bytes(aml);
}

/// `_OSC` (PCI Firmware Specification 3.3, 4.5.1): the guest may have what is in [`OSC_GRANTED`].
fn operating_system_capabilities() -> Encoded {
    let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
    let mut aml = Vec::new();
    Method::new(
        "_OSC".into(),
        4,
        true,
        vec![
            &CreateDWordField::new(&status, &Arg(3), &ZERO),
            &If::new(
                &Equal::new(&Arg(0), &Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766")),
                vec![
                    &CreateDWordField::new(&control, &Arg(3), &8u8),
                    &And::new(&Local(0), &control, &OSC_GRANTED),
                    &If::new(
                        &NotEqual::new(&Arg(1), &ONE),
                        vec![&Or::new(&status, &status, &OSC_UNKNOWN_REVISION)],
                    ),
                    &If::new(
                        &NotEqual::new(&control, &Local(0)),
                        vec![&Or::new(&status, &status, &OSC_CAPABILITIES_MASKED)],
                    ),
                    &Store::new(&control, &Local(0)),
                ],
            ),
            &Else::new(vec![&Or::new(&status, &status, &OSC_UNKNOWN_UUID)]),
            &Return::new(&Arg(3)),
        ],
    )
    .to_aml_bytes(&mut aml);
    Encoded(aml)
}

/// What nobody else may have: configuration space, which guests only use if it is reserved here, and
/// the registers that the FADT names.
fn motherboard(aml: &mut Vec<u8>) {
    let (start, len) =
        const { (below_4_gib(layout::ECAM.start), below_4_gib(layout::ECAM.end - layout::ECAM.start)) };
    let ecam = Memory32Fixed::new(true, start, len);
    let acpi = ports(&layout::ACPI_PORTS);
    let slots = ports(&layout::SLOT_PORTS);
    let reset = ports(&(layout::RESET_PORT..layout::RESET_PORT + 1));
    Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam, &acpi, &slots, &reset])),
        ],
    )
    .to_aml_bytes(aml);
}

fn serial_port(aml: &mut Vec<u8>) {
    let ports = ports(&layout::COM1_PORTS);
    let line = line(layout::COM1_GSI);
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &line])),
        ],
    )
    .to_aml_bytes(aml);
}

/// Without its line: it has no alarm, and a guest that is told so needs none.
fn clock(aml: &mut Vec<u8>) {
    let ports = ports(&layout::RTC_PORTS);
    Device::new(
        "RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    )
    .to_aml_bytes(aml);
}

fn power_button(aml: &mut Vec<u8>) {
    Device::new(
        POWER_BUTTON.into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)],
    )
    .to_aml_bytes(aml);
}

/// The VM generation id (Microsoft, "Virtual Machine Generation ID"): found by its compatible id, and told
/// where the id is by its object ADDR.
fn generation(aml: &mut Vec<u8>) {
    const { below_4_gib(layout::VM_GENERATION.end) };
    let low = const { below_4_gib(layout::VM_GENERATION.start) };
    Device::new(
        GENERATION.into(),
        vec![
            &Name::new("_HID".into(), &"EC2V0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &ZERO])),
        ],
    )
    .to_aml_bytes(aml);
}

/// The generic event device (ACPI 6.5, 5.6.9): on its line it reads which events are pending, once,
/// since reading clears them, and tells each device that one concerns.
fn events(aml: &mut Vec<u8>) {
    let pending = Path::new("PEND");
    let line = line(layout::EVENT_GSI);
    let mut status = Vec::new();
    let byte = FieldAccessType::Byte;
    registers("EVTR", layout::EVENT_STATUS_PORT, 1, byte, &[(*b"PEND", 8)], &mut status);
    let checks: Vec<Encoded> = Event::ALL.iter().map(|&event| act_if_pending(event)).collect();
    let read = Store::new(&Local(0), &pending);
    let mut body: Vec<&dyn Aml> = vec![&read];
    body.extend(checks.iter().map(|check| check as &dyn Aml));
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&line])),
            &Encoded(status),
            &Method::new("_EVT".into(), 1, true, body),
        ],
    )
    .to_aml_bytes(aml);
}

/// What is done about an event, if its bit of Local0 is set.
fn act_if_pending(event: Event) -> Encoded {
    let mask = event.mask();
    match event {
        Event::PowerButton => notify_if(0, mask.into(), POWER_BUTTON, BUTTON_PRESSED),
        Event::GenerationChanged => notify_if(0, mask.into(), GENERATION, GENERATION_CHANGED),
        Event::Slots => {
            let mut aml = Vec::new();
            // `^^PCI0.CHNG ()`: two scopes up, a name of two segments; a call has no other bytes.
            let tell = Encoded(b"^^.PCI0CHNG".to_vec());
            If::new(&And::new(&ZERO, &Local(0), &mask), vec![&tell]).to_aml_bytes(&mut aml);
            Encoded(aml)
        }
    }
}

/// A device a vCPU, whose `_UID` is the MADT's processor uid.
fn processors(aml: &mut Vec<u8>, cpus: u8) {
    for cpu in 0..cpus {
        Device::new(
            Path::new(&format!("C{cpu:03X}")),
            vec![
                &Name::new("_HID".into(), &"ACPI0007"),
                &Name::new("_UID".into(), &cpu),
                &Name::new("_STA".into(), &STATUS_PRESENT),
            ],
        )
        .to_aml_bytes(aml);
    }
}

/// AML that is encoded already.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn ports(range: &Range<u16>) -> IO {
    let count = u8::try_from(range.len()).unwrap_or(u8::MAX);
    IO::new(range.start, range.start, 1, count)
}

/// An edge-triggered line, as an eventfd drives it, of nobody else.
fn line(gsi: u32) -> Interrupt {
    let (consumer, edge_triggered, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge_triggered, active_low, shared, gsi)
}

#[expect(clippy::cast_possible_truncation, reason = "twelve")]
const SLOT_PORTS_LEN: u8 = (layout::SLOT_PORTS.end - layout::SLOT_PORTS.start) as u8;
const HEADER_BYTES: u32 = 36;
/// From 2 on, integers have 64 bits.
const REVISION: u8 = 2;

const POWER_BUTTON: &str = "PWRB";
// Notifications of any device (ACPI 6.5, table 5.159).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
/// Notification of a button (ACPI 6.5, table 5.161).
const BUTTON_PRESSED: u8 = 0x80;
const GENERATION: &str = "VGEN";
/// The notification of that specification.
const GENERATION_CHANGED: u8 = 0x80;
/// `_STA` (ACPI 6.5, 6.3.7): present, enabled, shown, working.
const STATUS_PRESENT: u8 = 0xf;

// First and third double word of `_OSC` (PCI Firmware Specification 3.3, tables 4-4 and 4-6).
const OSC_UNKNOWN_UUID: u8 = 1 << 2;
const OSC_UNKNOWN_REVISION: u8 = 1 << 3;
const OSC_CAPABILITIES_MASKED: u8 = 1 << 4;
/// Power management events, error reporting, the PCI Express capability. Neither kind of native
/// hot-plug: no slot here has registers for it.
const OSC_GRANTED: u8 = 1 << 2 | 1 << 3 | 1 << 4;
