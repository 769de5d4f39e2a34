//! Several vCPUs at the same functions at once, and the event loop beside them.

use std::{
    io,
    sync::{Arc, Mutex, mpsc},
    thread,
};

use super::{BAR_LEN, Link, NOTIFY, VirtioFunction, Wiring};
use crate::{
    pci::{MsiMessage, PciBus},
    virtio::{ConfigSpace, Identity, Interrupt, VirtQueue, testing::Guest},
};

/// What the transport has told, checked as it comes.
#[derive(Default)]
struct Told {
    active: bool,
    kicks: Option<u64>,
    messages: [Option<MsiMessage>; 2],
}

struct Checked {
    function: usize,
    told: Arc<Mutex<Told>>,
    resets: mpsc::Sender<usize>,
}

impl Wiring for Checked {
    fn route(&mut self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        let sent = &mut self.told.lock().unwrap().messages[usize::from(vector)];
        assert_ne!(sent.is_some(), message.is_some());
        *sent = message;
        Ok(())
    }

    fn kicks_at(&mut self, address: Option<u64>) -> io::Result<()> {
        self.told.lock().unwrap().kicks = address;
        Ok(())
    }

    fn activate(&mut self, _features: u64, _queues: Vec<VirtQueue>) {
        assert!(!std::mem::replace(&mut self.told.lock().unwrap().active, true), "activated twice");
    }

    fn reset(&mut self) {
        assert!(std::mem::replace(&mut self.told.lock().unwrap().active, false), "reset twice");
        self.resets.send(self.function).unwrap();
    }

    fn kick(&mut self, _queue: u16) {
        assert!(self.told.lock().unwrap().active);
    }
}

/// Numbers that look random, the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

const SLOTS: [u8; 2] = [1, 2];
/// Three places for two BARs.
const PLACES: u64 = 3;
const BASE: u64 = 0xc000_0000;
const STEPS: u64 = 5000;

fn config(slot: u8, register: u64) -> u64 {
    u64::from(slot) << 15 | register
}

/// One step of a vCPU.
fn step(bus: &PciBus, numbers: &mut Numbers) {
    let slot = SLOTS[usize::from(numbers.below(2) == 1)];
    let place = BASE + numbers.below(PLACES) * BAR_LEN;
    match numbers.below(8) {
        0 => bus.config_write(config(slot, 0x10), &place.to_le_bytes()),
        1 => bus.config_write(config(slot, 4), &[if numbers.below(8) == 0 { 0 } else { 2 }, 0]),
        2 => bus.config_write(config(slot, 0x42), &[0, if numbers.below(4) == 0 { 0 } else { 0x80 }]),
        3 => drop(bus.mmio_write(place + 0x400c, &[u8::from(numbers.below(2) == 0), 0, 0, 0])),
        4 => drop(bus.mmio_write(place + NOTIFY, &[0, 0])),
        5 => drop(bus.mmio_read(place + numbers.below(64), &mut [0; 4])),
        6 => drop(bus.mmio_write(place + 20, &[0])),
        _ => {
            for (at, value) in [(8, 1_u32), (12, 1)] {
                bus.mmio_write(place + at, &value.to_le_bytes());
            }
            for status in [1, 3, 0xb, 0xf] {
                bus.mmio_write(place + 20, &[status]);
            }
        }
    }
}

#[test]
fn vcpus_at_once_break_nothing() {
    let guest = Guest::new(&[]);
    let (bus, (sender, resets)) = (PciBus::new(), mpsc::channel());
    let functions = SLOTS.map(|slot| {
        let identity = Identity {
            device_type: 4,
            pci_class: 0,
            features: 0,
            queue_sizes: vec![16],
            config: Arc::new(ConfigSpace::read_only(vec![0; 8])),
        };
        let (link, told) = (Link::new(1).unwrap(), Arc::<Mutex<Told>>::default());
        let wiring =
            Checked { function: usize::from(slot) - 1, told: Arc::clone(&told), resets: sender.clone() };
        let memory = Arc::clone(&guest.memory);
        bus.insert(slot, VirtioFunction::new(identity, BASE, memory, Arc::clone(&link), wiring).unwrap())
            .unwrap();
        (link, told)
    });
    drop(sender);
    thread::scope(|scope| {
        let vcpus: Vec<_> = (0..3)
            .map(|seed| {
                let bus = &bus;
                scope.spawn(move || {
                    let mut numbers = Numbers(seed);
                    (0..STEPS).for_each(|_| step(bus, &mut numbers));
                })
            })
            .collect();
        while vcpus.iter().any(|vcpu| !vcpu.is_finished()) {
            for function in resets.try_iter() {
                functions[function].0.reset_done();
            }
            functions.iter().for_each(|(link, _)| link.used(0));
            thread::yield_now();
        }
    });
    resets.try_iter().for_each(|function| functions[function].0.reset_done());
    // Each answers where it is put, and nowhere else.
    for (slot, (_, told)) in SLOTS.into_iter().zip(&functions) {
        let place = BASE + (PLACES + u64::from(slot)) * BAR_LEN;
        bus.config_write(config(slot, 0x10), &place.to_le_bytes());
        bus.config_write(config(slot, 4), &[2, 0]);
        assert!(bus.mmio_read(place, &mut [0]));
        assert_eq!(told.lock().unwrap().kicks, Some(place + NOTIFY));
    }
    assert!((0..PLACES).all(|place| !bus.mmio_read(BASE + place * BAR_LEN, &mut [0])));
}
