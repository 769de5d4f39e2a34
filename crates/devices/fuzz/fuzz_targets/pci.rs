//! The PCI bus with two virtio functions and pvpanic on it: configuration space, BARs that move, MSI-X,
//! the transport of virtio, and the event loop's answers to it.
//!
//! What must hold after each access: the loop is told to activate and to reset in turn; messages and
//! nothing take turns on a vector; doorbells hang where the BAR is; a function keeps its ids and answers
//! where it says; and one access has so many effects at most.

#![no_main]

use std::{
    io,
    sync::{Arc, Mutex},
};

use arbitrary::Arbitrary;
use ec2vmm_devices::{
    Memory,
    pci::{Link, MsiMessage, PciBus, VirtioFunction, Wiring, virtio::BAR_LEN},
    pvpanic::{OnPanic, Panic, Pvpanic},
    virtio::{ConfigSpace, Identity, Interrupt, VirtQueue},
};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

#[derive(Arbitrary, Debug)]
enum Step {
    Config {
        slot: u8,
        at: u8,
        data: Data,
    },
    ConfigAnywhere {
        at: u32,
        data: Data,
    },
    ConfigRead {
        at: u32,
        len: u8,
    },
    /// A register of the BAR, wherever the function is now.
    Register {
        slot: u8,
        page: u8,
        at: u8,
        data: Data,
    },
    Write {
        at: At,
        data: Data,
    },
    Read {
        at: At,
        len: u8,
    },
    /// The driver goes its way: status, features, one queue.
    Drive {
        slot: u8,
        features: u64,
        queue: u8,
        size: u8,
        at: u16,
    },
    Vector {
        slot: u8,
        vector: u8,
        address: u64,
        data: u32,
        masked: bool,
    },
    Used {
        slot: u8,
        queue: u16,
    },
    NeedsReset(u8),
    ResetDone(u8),
    MachineReset,
    /// The host fails from now on, or no more.
    Fail(bool),
    Remove(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Data {
    Byte(u8),
    Word(u16),
    Double(u32),
    Quad(u64),
    Odd([u8; 3]),
}

impl Data {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Byte(value) => value.to_le_bytes().to_vec(),
            Self::Word(value) => value.to_le_bytes().to_vec(),
            Self::Double(value) => value.to_le_bytes().to_vec(),
            Self::Quad(value) => value.to_le_bytes().to_vec(),
            Self::Odd(value) => value.to_vec(),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum At {
    Bar(u32),
    Wrap(u16),
    Any(u64),
}

impl At {
    fn number(self) -> u64 {
        match self {
            Self::Bar(by) => BAR + u64::from(by % 0x2_0000),
            Self::Wrap(by) => u64::MAX - u64::from(by),
            Self::Any(at) => at,
        }
    }
}

/// What one function has been told to do.
struct Told {
    active: bool,
    messages: [Option<MsiMessage>; VECTORS],
    kicks: Option<u64>,
    fails: bool,
    effects: usize,
    resets_owed: usize,
}

#[derive(Clone)]
struct Recorder(Arc<Mutex<Told>>);

impl Recorder {
    fn new() -> Self {
        let told = Told {
            active: false,
            messages: [None; VECTORS],
            kicks: None,
            fails: false,
            effects: 0,
            resets_owed: 0,
        };
        Self(Arc::new(Mutex::new(told)))
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        let mut told = self.0.lock().expect("nobody panics");
        told.effects += 1;
        told
    }
}

impl Wiring for Recorder {
    fn route(&mut self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        let mut told = self.told();
        if told.fails {
            return Err(io::ErrorKind::Other.into());
        }
        let now = &mut told.messages[usize::from(vector)];
        assert!(now.is_none() || message.is_none(), "vector {vector} was told nothing in between");
        *now = message;
        Ok(())
    }

    fn kicks_at(&mut self, address: Option<u64>) -> io::Result<()> {
        let mut told = self.told();
        assert_ne!(told.kicks, address);
        told.kicks = address;
        if told.fails { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }

    fn activate(&mut self, features: u64, queues: Vec<VirtQueue>) {
        let mut told = self.told();
        assert!(!std::mem::replace(&mut told.active, true), "activated twice");
        assert!(features & !OFFERED == 0 && features >> 32 & 1 == 1, "{features:#x}");
        assert_eq!(queues.len(), QUEUES);
        for queue in queues.iter().filter(|queue| queue.is_ready()) {
            assert!(queue.size().is_power_of_two() && queue.size() <= SIZE);
        }
    }

    fn reset(&mut self) {
        let mut told = self.told();
        assert!(std::mem::replace(&mut told.active, false), "reset though not active");
        told.resets_owed += 1;
        assert_eq!(told.resets_owed, 1, "a second reset before the first was done");
    }

    fn kick(&mut self, queue: u16) {
        let told = self.told();
        assert!(told.active && usize::from(queue) < QUEUES);
    }
}

struct Nobody;

impl OnPanic for Nobody {
    fn on_panic(&mut self, _panic: Panic) {}
}

struct Machine {
    bus: PciBus,
    functions: Vec<(u8, Recorder, Arc<Link>)>,
}

impl Machine {
    fn new() -> Self {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("guest memory"));
        let bus = PciBus::new();
        let functions = [1, 5].map(|slot| {
            let identity = Identity {
                device_type: slot.into(),
                pci_class: 0x02_00_00,
                features: FEATURES,
                queue_sizes: vec![SIZE; QUEUES],
                config: Arc::new(ConfigSpace::new(vec![1; 10], vec![0x0f; 10])),
            };
            let (recorder, link) = (Recorder::new(), Link::new(QUEUES).expect("descriptors"));
            let bar = BAR + u64::from(slot) * BAR_LEN;
            let function =
                VirtioFunction::new(identity, bar, Arc::clone(&memory), Arc::clone(&link), recorder.clone());
            bus.insert(slot, function.expect("a function")).expect("a slot");
            (slot, recorder, link)
        });
        bus.insert(4, Pvpanic::new(BAR + 0x1_0000, Nobody)).expect("a slot");
        Self { bus, functions: functions.into() }
    }

    fn function(&self, slot: u8) -> (u8, &Recorder, &Link) {
        let (slot, recorder, link) = &self.functions[usize::from(slot) % self.functions.len()];
        (*slot, recorder, link)
    }

    fn config(&self, slot: u8, at: u16, data: &[u8]) {
        self.bus.config_write(u64::from(slot) << 15 | u64::from(at), data);
    }

    fn dword(&self, slot: u8, at: u16) -> u32 {
        let mut data = [0; 4];
        self.bus.config_read(u64::from(slot) << 15 | u64::from(at), &mut data);
        u32::from_le_bytes(data)
    }

    /// Where a function's BAR is, if it answers.
    fn region(&self, slot: u8) -> Option<u64> {
        let (low, high) = (self.dword(slot, 0x10), self.dword(slot, 0x14));
        let base = u64::from(high) << 32 | u64::from(low & !0xf);
        (self.dword(slot, 4) & 2 != 0 && base.checked_add(BAR_LEN).is_some()).then_some(base)
    }

    fn register(&self, slot: u8, at: u64, data: &[u8]) {
        if let Some(base) = self.region(slot) {
            self.bus.mmio_write(base + at, data);
        }
    }

    fn drive(&self, slot: u8, features: u64, queue: u8, size: u8, at: u16) {
        self.config(slot, 4, &[6, 0]);
        let features = features & OFFERED | 1 << 32;
        for status in [1_u8, 3] {
            self.register(slot, 20, &[status]);
        }
        for half in [0_u32, 1] {
            self.register(slot, 8, &half.to_le_bytes());
            self.register(slot, 12, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.register(slot, 20, &[0xb]);
        self.register(slot, 22, &u16::from(queue % 4).to_le_bytes());
        self.register(slot, 24, &(1_u16 << (size % 10)).to_le_bytes());
        let base = 0x1000 + u64::from(at) * 16;
        for (register, address) in [(32, base), (40, base + 0x2000), (48, base + 0x3000)] {
            self.register(slot, register, &u64::to_le_bytes(address));
        }
        self.register(slot, 26, &u16::from(queue % 4).to_le_bytes());
        self.register(slot, 28, &[1, 0]);
        self.register(slot, 20, &[0xf]);
    }

    fn vector(&self, slot: u8, vector: u8, address: u64, data: u32, masked: bool) {
        let at = 0x4000 + u64::from(vector % 4) * 16;
        self.register(slot, at, &address.to_le_bytes());
        self.register(slot, at + 8, &data.to_le_bytes());
        self.register(slot, at + 12, &u32::from(masked).to_le_bytes());
        // Message control of MSI-X, which is the first capability.
        self.config(slot, 0x42, &[0, 0x80]);
    }

    fn step(&self, step: Step) {
        match step {
            Step::Config { slot, at, data } => self.config(slot % 8, at.into(), &data.bytes()),
            Step::ConfigAnywhere { at, data } => self.bus.config_write(at.into(), &data.bytes()),
            Step::ConfigRead { at, len } => {
                self.bus.config_read(at.into(), &mut vec![0xee; usize::from(len % 9)]);
            }
            Step::Register { slot, page, at, data } => {
                let (slot, ..) = self.function(slot);
                self.register(slot, u64::from(page % 8) * 0x1000 + u64::from(at % 72), &data.bytes());
            }
            Step::Write { at, data } => drop(self.bus.mmio_write(at.number(), &data.bytes())),
            Step::Read { at, len } => {
                self.bus.mmio_read(at.number(), &mut vec![0xee; usize::from(len % 9)]);
            }
            Step::Drive { slot, features, queue, size, at } => {
                self.drive(self.function(slot).0, features, queue, size, at);
            }
            Step::Vector { slot, vector, address, data, masked } => {
                self.vector(self.function(slot).0, vector, address, data, masked);
            }
            Step::Used { slot, queue } => self.function(slot).2.used(queue),
            Step::NeedsReset(slot) => self.function(slot).2.needs_reset(),
            Step::ResetDone(slot) => {
                let (_, recorder, link) = self.function(slot);
                let mut told = recorder.told();
                if told.resets_owed > 0 {
                    told.resets_owed = 0;
                    drop(told);
                    link.reset_done();
                }
            }
            Step::MachineReset => {
                self.bus.reset();
            }
            Step::Fail(fails) => self.functions.iter().for_each(|(_, told, _)| told.told().fails = fails),
            Step::Remove(slot) => {
                // Rarely, as nothing comes back.
                if slot > 250 {
                    self.bus.remove(self.function(slot).0);
                }
            }
        }
    }

    fn check(&self) {
        for (slot, recorder, link) in &self.functions {
            let id = self.dword(*slot, 0);
            let there = id == (0x1040 + u32::from(*slot)) << 16 | 0x1af4;
            assert!(there || id == u32::MAX, "{id:#x}");
            let mut told = recorder.told();
            assert!(told.effects <= EFFECTS_MAX, "{} effects", told.effects);
            told.effects = 0;
            let region = if there { self.region(*slot) } else { None };
            assert_eq!(told.kicks, region.map(|base| base + 0x3000));
            assert_eq!(link.status() & 0x30, 0, "bits that virtio does not have");
            for vector in 0..VECTORS {
                let sent = told.messages[vector];
                assert!(sent.is_none_or(|message| message.address & 3 == 0), "{sent:?}");
            }
        }
        assert_eq!(self.dword(0, 0), 0x0008_1b36, "the host bridge");
    }
}

const BAR: u64 = 0xc000_0000;
const QUEUES: usize = 3;
const VECTORS: usize = QUEUES + 1;
const SIZE: u16 = 256;
const FEATURES: u64 = 0x1234;
/// Version 1, event index and indirect descriptors are the transport's.
const OFFERED: u64 = FEATURES | 1 << 32 | 1 << 28 | 1 << 29;
/// Of one step: all vectors off and on again for each of a driver's thirty accesses.
const EFFECTS_MAX: usize = 400;

fuzz_target!(|steps: Vec<Step>| {
    let machine = Machine::new();
    for step in steps {
        machine.step(step);
        machine.check();
    }
});
