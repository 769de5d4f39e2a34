//! State files of snapshots: raw ones, documents behind a right header, and the shipped one with changes in its
//! tree. What is read can be written and read again, and names itself alike for those who know no machine. Devices
//! refuse or take what they are given.

#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use ec2vmm_devices::{console::ConsoleOutput, rtc, serial};
use ec2vmm_snapshot::{read_document, read_head, write_document};
use ec2vmm_vmm::snapshot::{Document, file};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[derive(Arbitrary, Debug)]
enum Input {
    Raw(Vec<u8>),
    Document(Vec<u8>),
    Changed(Vec<Change>),
}

/// Of one of the places in the tree, by its number.
#[derive(Arbitrary, Debug)]
struct Change {
    place: u16,
    to: To,
}

#[derive(Arbitrary, Debug)]
enum To {
    Number(u64),
    Negative(i64),
    Fraction(f64),
    Text(String),
    /// As registers are written.
    Hex(Vec<u8>),
    Bool(bool),
    Nothing,
    List,
    /// As often as this.
    Repeated(u8),
    Removed,
}

const SHIPPED: &[u8] = include_bytes!("../../tests/tiny_guests/snapshots/format-1/state");

/// Finds a place, counting down, and changes it.
fn change(value: &mut Value, left: &mut usize, to: &To) -> bool {
    if *left == 0 {
        *value = match to {
            To::Number(number) => (*number).into(),
            To::Negative(number) => (*number).into(),
            To::Fraction(number) => (*number).into(),
            To::Text(text) => text.clone().into(),
            To::Hex(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
            To::Bool(bool) => (*bool).into(),
            To::Nothing | To::Removed => Value::Null,
            To::List => Value::Array(Vec::new()),
            To::Repeated(count) => Value::Array(vec![value.clone(); usize::from(*count)]),
        };
        return true;
    }
    *left -= 1;
    match value {
        Value::Array(values) => values.iter_mut().any(|value| change(value, left, to)),
        Value::Object(fields) if matches!(to, To::Removed) && *left < fields.len() => {
            let name = fields.keys().nth(*left).cloned();
            name.is_some_and(|name| fields.remove(&name).is_some())
        }
        Value::Object(fields) => fields.values_mut().any(|value| change(value, left, to)),
        _ => false,
    }
}

fn under_a_header(document: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    write_document(document, &mut file).expect("memory");
    file
}

impl Input {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes,
            Self::Document(text) => under_a_header(&text),
            Self::Changed(changes) => {
                let text = read_document(&mut &*SHIPPED).expect("the shipped file");
                let mut tree: Value = serde_json::from_slice(&text).expect("a tree");
                for Change { place, to } in changes {
                    change(&mut tree, &mut usize::from(place), &to);
                }
                under_a_header(&serde_json::to_vec(&tree).expect("a text"))
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let bytes = input.bytes();
    let Ok(document) = file::read(&mut bytes.as_slice()) else { return };
    let text = read_document(&mut bytes.as_slice()).expect("it was read");
    assert_eq!(read_head(&text).expect("its head").id, document.id);
    let mut again = Vec::new();
    file::write(&document, &mut again).expect("memory");
    let Document { serial, rtc, .. } = file::read(&mut again.as_slice()).expect("the same document");
    let port = serial::Serial::new(Arc::new(ConsoleOutput::new(1024).expect("an eventfd"))).expect("an eventfd");
    if port.restore(serial).is_ok() {
        for register in 0..8 {
            port.read(register);
        }
    }
    let mut clock = rtc::Rtc::new(Noon);
    if clock.restore(rtc).is_ok() {
        for register in 0..128 {
            clock.write(0, register);
            clock.read(1);
        }
    }
});

struct Noon;

impl rtc::WallClock for Noon {
    fn now_ns(&self) -> i128 {
        43_200_000_000_000
    }
}
