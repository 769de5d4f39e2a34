use std::{
    io,
    sync::{Arc, Mutex},
};

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};

use super::{BAR_LEN, BuildError, Link, Saved, VirtioFunction, Wiring};
use crate::{
    pci::{MsiMessage, PciBus},
    virtio::{ConfigSpace, Identity, Interrupt, Position, VirtQueue, testing::Guest},
};

/// What the transport told its owner.
#[derive(Debug, PartialEq)]
enum Told {
    Route(u16, Option<MsiMessage>),
    Kicks(Option<u64>),
    /// Features, and which queues are ready.
    Activate(u64, Vec<bool>),
    Reset,
    Kick(u16),
}

#[derive(Clone, Default)]
struct Recorder {
    told: Arc<Mutex<Vec<Told>>>,
    /// Of the queues that were activated last: available, used.
    positions: Arc<Mutex<Vec<(u16, u16)>>>,
    fails: bool,
}

impl Recorder {
    fn tell(&self, told: Told) -> io::Result<()> {
        self.told.lock().unwrap().push(told);
        if self.fails { Err(io::ErrorKind::AlreadyExists.into()) } else { Ok(()) }
    }

    fn positions(&self) -> Vec<(u16, u16)> {
        self.positions.lock().unwrap().clone()
    }

    fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

impl Wiring for Recorder {
    fn route(&mut self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        self.tell(Told::Route(vector, message))
    }

    fn kicks_at(&mut self, address: Option<u64>) -> io::Result<()> {
        self.tell(Told::Kicks(address))
    }

    fn activate(&mut self, features: u64, queues: Vec<VirtQueue>) {
        let position = |queue: &VirtQueue| {
            let Position { next_available, next_used } = queue.position(0);
            (next_available, next_used)
        };
        *self.positions.lock().unwrap() = queues.iter().map(position).collect();
        let _ = self.tell(Told::Activate(features, queues.iter().map(VirtQueue::is_ready).collect()));
    }

    fn reset(&mut self) {
        let _ = self.tell(Told::Reset);
    }

    fn kick(&mut self, queue: u16) {
        let _ = self.tell(Told::Kick(queue));
    }
}

const BAR: u64 = 0x10_0000_0000;
const SLOT: u64 = 3 << 15;
const OFFERED: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 5;

/// A machine with one device of two queues, and a driver's view of it.
struct Machine {
    bus: PciBus,
    link: Arc<Link>,
    wiring: Recorder,
    guest: Guest,
    config: Arc<ConfigSpace>,
}

impl Machine {
    fn new() -> Self {
        Self::with(Recorder::default())
    }

    fn with(wiring: Recorder) -> Self {
        let config = Arc::new(ConfigSpace::new(vec![1, 2, 3, 4, 5], vec![0, 0, 0, 0, 0xff]));
        let identity = Identity {
            device_type: 2,
            pci_class: 0x01_00_00,
            features: 1 << 5,
            queue_sizes: vec![256, 64],
            config: Arc::clone(&config),
        };
        let guest = Guest::new(&[256, 64]);
        let link = Link::new(2).unwrap();
        let function =
            VirtioFunction::new(identity, BAR, Arc::clone(&guest.memory), Arc::clone(&link), wiring.clone());
        let bus = PciBus::new();
        bus.insert(3, function.unwrap()).unwrap();
        Self { bus, link, wiring, guest, config }
    }

    /// A machine whose driver has found the device, and turned memory and MSI-X on.
    fn found() -> Self {
        let machine = Self::new();
        machine.config_write(4, &[6, 4]);
        machine.config_write(machine.capability(0x11, None) + 2, &[0, 0x80]);
        for vector in 0..3u64 {
            machine.write(0x4000 + 16 * vector, 0xfee0_0000, 8);
            machine.write(0x4008 + 16 * vector, 100 + vector, 4);
            machine.write(0x400c + 16 * vector, 0, 4);
        }
        let message = |data| Some(MsiMessage { address: 0xfee0_0000, data });
        assert_eq!(
            machine.wiring.take(),
            [
                Told::Kicks(Some(BAR + 0x3000)),
                Told::Route(0, message(100)),
                Told::Route(1, message(101)),
                Told::Route(2, message(102)),
            ]
        );
        machine
    }

    /// One whose driver is at work.
    fn active() -> Self {
        let mut machine = Self::found();
        machine.negotiate(OFFERED);
        machine.set_up_queue(0, 256);
        machine.set_up_queue(1, 16);
        machine.write(20, 0xf, 1);
        assert_eq!(machine.wiring.take(), [Told::Activate(OFFERED, vec![true, true])]);
        machine
    }

    fn config_read(&self, offset: u16, len: usize) -> u64 {
        let mut data = [0; 8];
        self.bus.config_read(SLOT + u64::from(offset), &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.bus.config_write(SLOT + u64::from(offset), data);
    }

    fn read(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        assert!(self.bus.mmio_read(BAR + offset, &mut data[..len]));
        u64::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u64, len: usize) {
        assert!(self.bus.mmio_write(BAR + offset, &value.to_le_bytes()[..len]));
    }

    /// Where the capability with this id, and this virtio structure type, is.
    fn capability(&self, id: u64, kind: Option<u64>) -> u16 {
        let mut at = self.config_read(0x34, 1);
        while at != 0 {
            let here = u16::try_from(at).unwrap();
            if self.config_read(here, 1) == id
                && kind.is_none_or(|kind| self.config_read(here + 3, 1) == kind)
            {
                return here;
            }
            at = self.config_read(here + 1, 1);
        }
        panic!("no capability {id:#x} {kind:?}");
    }

    /// Up to FEATURES_OK. Whether it stuck.
    fn negotiate(&self, features: u64) -> bool {
        self.write(20, 0, 1);
        assert_eq!(self.read(20, 1), 0);
        self.write(20, 1, 1);
        self.write(20, 3, 1);
        for half in 0..2 {
            self.write(8, half, 4);
            self.write(12, features >> (32 * half) & 0xffff_ffff, 4);
        }
        self.write(20, 0xb, 1);
        self.read(20, 1) & 8 != 0
    }

    fn set_up_queue(&mut self, queue: u16, size: u64) {
        self.write(22, queue.into(), 2);
        self.write(24, size, 2);
        let ring = self.guest.ring(queue.into());
        let [descriptors, available, used] = [ring.descriptors, ring.available, ring.used];
        self.write(32, descriptors & 0xffff_ffff, 4);
        self.write(36, descriptors >> 32, 4);
        self.write(40, available, 8);
        self.write(48, used, 8);
        self.write(26, u64::from(queue) + 1, 2);
        self.write(28, 1, 2);
    }

    fn fired(&self) -> Vec<usize> {
        (0..3).filter(|&vector| self.link.eventfds()[vector].read().is_ok()).collect()
    }
}

#[test]
fn linux_finds_its_structures() {
    let machine = Machine::new();
    assert_eq!(machine.config_read(0, 4), 0x1042_1af4);
    assert_eq!(machine.config_read(8, 4), 0x0100_0001);
    assert_eq!(machine.config_read(0x2c, 4), 0x1042_1af4);
    assert_eq!(machine.config_read(0x3d, 1), 0, "no INTx");
    for (kind, offset, len) in [(1, 0, 56), (2, 0x3000, 8), (3, 0x1000, 1), (4, 0x2000, 5), (5, 0, 0)] {
        let at = machine.capability(9, Some(kind));
        assert_eq!(machine.config_read(at + 4, 1), 0, "BAR");
        assert_eq!((machine.config_read(at + 8, 4), machine.config_read(at + 12, 4)), (offset, len));
    }
    let notify = machine.capability(9, Some(2));
    assert_eq!((machine.config_read(notify + 2, 1), machine.config_read(notify + 16, 4)), (20, 4));
    let msix = machine.capability(0x11, None);
    assert_eq!(machine.config_read(msix + 2, 2), 2, "three vectors, off");
    assert_eq!((machine.config_read(msix + 4, 4), machine.config_read(msix + 8, 4)), (0x4000, 0x5000));
}

#[test]
fn a_driver_goes_its_way_as_linux_does() {
    let mut machine = Machine::found();
    assert_eq!(machine.read(18, 2), 2, "queues");
    let offered = (0..3).map(|half| {
        machine.write(0, half, 4);
        machine.read(4, 4)
    });
    assert_eq!(offered.collect::<Vec<_>>(), [OFFERED & 0xffff_ffff, OFFERED >> 32, 0]);
    assert!(machine.negotiate(OFFERED));
    machine.write(16, 0, 2);
    assert_eq!(machine.read(16, 2), 0);
    machine.write(16, 3, 2);
    assert_eq!(machine.read(16, 2), 0xffff, "there is no vector 3");
    machine.write(16, 0, 2);
    machine.write(22, 2, 2);
    assert_eq!((machine.read(24, 2), machine.read(26, 2)), (0, 0xffff), "there is no queue 2");
    machine.write(22, 1, 2);
    assert_eq!((machine.read(24, 2), machine.read(28, 2), machine.read(30, 2)), (64, 0, 1));
    machine.set_up_queue(1, 16);
    assert_eq!((machine.read(24, 2), machine.read(26, 2), machine.read(28, 2)), (16, 2, 1));
    machine.write(20, 0xf, 1);
    assert_eq!(machine.read(20, 1), 0xf);
    assert_eq!(machine.wiring.take(), [Told::Activate(OFFERED, vec![false, true])]);
    machine.write(20, 0xf, 1);
    assert_eq!(machine.wiring.take(), [], "once");
    // What is set up stays.
    machine.write(24, 32, 2);
    machine.write(32, 0, 4);
    assert_eq!((machine.read(24, 2), machine.read(32, 4) != 0), (16, true));

    machine.link.used(1);
    assert_eq!(machine.fired(), [2]);
    machine.link.used(0);
    assert_eq!(machine.fired(), [0; 0], "no vector was chosen");
    assert_eq!(machine.read(0x1000, 1), 0, "with MSI-X the ISR is not for queues");
    machine.link.config_changed();
    assert_eq!(machine.fired(), [0]);
    assert_eq!([machine.read(0x1000, 1), machine.read(0x1000, 1)], [2, 0]);
    machine.write(0x3004, 1, 2);
    machine.write(0x3008, 1, 2);
    assert_eq!(machine.wiring.take(), [Told::Kick(1)]);
}

#[test]
fn features_that_cannot_be_are_refused() {
    let machine = Machine::found();
    assert!(!machine.negotiate(1 << 28), "legacy");
    assert!(!machine.negotiate(OFFERED | 1 << 33), "not offered");
    assert!(!machine.negotiate(OFFERED | 1));
    machine.write(20, 0xf, 1);
    assert_eq!(machine.read(20, 1), 3, "neither FEATURES_OK nor DRIVER_OK");
    assert!(machine.negotiate(1 << 32));
    machine.write(8, 0, 4);
    machine.write(12, 1 << 5, 4);
    assert_eq!(machine.read(12, 4), 0, "agreed is agreed");
    machine.write(20, 0x80, 1);
    assert_eq!(machine.read(20, 1), 0x8b, "bits are only added");
    machine.write(20, 0x40, 1);
    assert_eq!(machine.read(20, 1), 0x8b, "NEEDS_RESET is the device's");
    assert_eq!(machine.wiring.take(), []);
}

#[test]
fn queues_that_cannot_be_are_not_enabled() {
    let mut machine = Machine::found();
    machine.set_up_queue(0, 256);
    assert_eq!(machine.read(28, 2), 0, "before FEATURES_OK");
    assert!(machine.negotiate(OFFERED));
    for size in [0, 3, 48, 512, 0x8000, 0xffff] {
        machine.set_up_queue(0, size);
        assert_eq!(machine.read(28, 2), 0, "size {size}");
    }
    let outside = 16 << 20;
    for (register, address) in [
        (32, outside),
        (40, outside),
        (48, outside),
        (32, outside - 16),
        (48, outside - 4),
        (32, u64::MAX - 15),
        (40, u64::MAX - 1),
        (48, u64::MAX - 3),
        (32, 8),
        (40, 1),
        (48, 2),
        (40, 0),
    ] {
        let _ = machine.negotiate(OFFERED);
        machine.set_up_queue_but(register, address);
        assert_eq!(machine.read(28, 2), 0, "{register}: {address:#x}");
    }
    machine.set_up_queue(0, 128);
    assert_eq!(machine.read(28, 2), 1);
    machine.write(28, 0, 2);
    assert_eq!(machine.read(28, 2), 1, "only a reset disables it");
}

impl Machine {
    fn set_up_queue_but(&mut self, register: u64, address: u64) {
        let ring = self.guest.ring(0);
        let addresses = [(32, ring.descriptors), (40, ring.available), (48, ring.used), (register, address)];
        self.write(22, 0, 2);
        self.write(24, 256, 2);
        addresses.iter().for_each(|&(register, address)| self.write(register, address, 8));
        self.write(28, 1, 2);
    }
}

#[test]
fn a_reset_ends_when_the_loop_says_so() {
    let mut machine = Machine::active();
    machine.write(20, 0, 1);
    assert_eq!(machine.wiring.take(), [Told::Reset]);
    machine.write(20, 0, 1);
    assert_eq!(machine.wiring.take(), [], "once");
    for (offset, value, len) in [(20, 1, 1), (22, 1, 2), (16, 0, 2), (0, 1, 4), (26, 1, 2)] {
        machine.write(offset, value, len);
    }
    machine.write(0x2004, 9, 1);
    assert_eq!(machine.read(0x2000, 8), 0x05_0403_0201, "lost");
    machine.write(0x3000, 0, 2);
    assert_eq!((machine.read(20, 1), machine.read(22, 2), machine.read(16, 2)), (0xf, 0, 0xffff));
    machine.link.used(0);
    assert_eq!(machine.fired(), [0; 0], "a device that is being reset interrupts no more");
    machine.link.reset_done();
    assert_eq!((machine.read(20, 1), machine.read(26, 2), machine.read(28, 2)), (0, 0xffff, 0));
    assert_eq!(machine.wiring.take(), []);
    // And again, several times.
    for _ in 0..3 {
        assert!(machine.negotiate(OFFERED));
        machine.set_up_queue(0, 256);
        machine.write(20, 0xf, 1);
        assert_eq!(machine.wiring.take(), [Told::Activate(OFFERED, vec![true, false])]);
        machine.write(20, 0, 1);
        assert_eq!(machine.wiring.take(), [Told::Reset]);
        machine.link.reset_done();
        machine.link.reset_done();
    }
}

#[test]
fn a_fault_asks_for_a_reset() {
    let machine = Machine::active();
    machine.write(16, 0, 2);
    machine.link.needs_reset();
    assert_eq!((machine.read(20, 1), machine.fired()), (0x4f, vec![0]));
    machine.write(20, 0, 1);
    machine.link.reset_done();
    assert_eq!(machine.read(20, 1), 0);
    machine.link.needs_reset();
    assert_eq!((machine.read(20, 1), machine.fired()), (0, vec![]), "nobody is there to be told");
}

#[test]
fn a_machine_reset_makes_it_as_born() {
    for is_busy in [false, true] {
        let machine = Machine::active();
        if is_busy {
            machine.write(20, 0, 1);
            assert_eq!(machine.wiring.take(), [Told::Reset]);
        }
        machine.bus.reset();
        let mut told = machine.wiring.take();
        if !is_busy {
            assert_eq!(told.remove(0), Told::Reset);
        }
        let expected = [Told::Kicks(None), Told::Route(0, None), Told::Route(1, None), Told::Route(2, None)];
        assert_eq!(told, expected);
        assert!(!machine.bus.mmio_read(BAR, &mut [0]));
        assert_eq!(machine.config_read(4, 2), 0);
        machine.config_write(4, &[2]);
        assert_eq!(machine.read(20, 1), 0xf, "until the loop is done");
        machine.link.reset_done();
        assert_eq!((machine.read(20, 1), machine.read(0x400c, 4)), (0, 1));
        assert_eq!(machine.config_read(machine.capability(0x11, None) + 2, 2), 2);
        machine.bus.reset();
        assert_eq!(machine.wiring.take(), [Told::Kicks(Some(BAR + 0x3000)), Told::Kicks(None)]);
    }
}

#[test]
fn a_device_that_is_pulled_lets_go_of_the_host() {
    let machine = Machine::active();
    machine.link.used(0);
    assert!(machine.bus.remove(3));
    let expected =
        [Told::Reset, Told::Kicks(None), Told::Route(0, None), Told::Route(1, None), Told::Route(2, None)];
    assert_eq!(machine.wiring.take(), expected);
    assert_eq!(machine.fired(), [0; 0], "nothing is left over");
    assert_eq!(machine.config_read(0, 4), 0xffff_ffff);
    machine.link.needs_reset();
    machine.link.reset_done();
    assert_eq!(machine.link.status(), 0);
}

#[test]
fn the_window_of_config_space_reaches_the_registers() {
    let machine = Machine::new();
    let window = machine.capability(9, Some(5));
    let set = |bar: u8, offset: u32, len: u32| {
        machine.config_write(window + 4, &[bar]);
        machine.config_write(window + 8, &offset.to_le_bytes());
        machine.config_write(window + 12, &len.to_le_bytes());
    };
    set(0, 20, 1);
    machine.config_write(window + 16, &[1, 0xff, 0xff, 0xff]);
    assert_eq!(machine.config_read(window + 16, 4), 1, "status, though memory is off");
    set(0, 18, 2);
    assert_eq!(machine.config_read(window + 16, 2), 2);
    for (bar, offset, len) in
        [(1, 20, 1), (0, 18, 4), (0, 20, 3), (0, 20, 0), (0, 0xffff_fffc, 4), (0, 0x8000, 4)]
    {
        set(bar, offset, len);
        machine.config_write(window + 16, &[0xaa; 4]);
        assert_eq!(machine.config_read(window + 16, 4), 0xaaaa_aaaa, "a window to nowhere: mere bytes");
    }
}

#[test]
fn the_devices_configuration_shows_its_changes() {
    let machine = Machine::found();
    let generation = machine.read(21, 1);
    machine.config.update(|bytes| bytes[0] = 77);
    assert_ne!(machine.read(21, 1), generation);
    machine.write(0x2000, 0x99_9999_9999, 8);
    assert_eq!(machine.read(0x2000, 8), 0x99_0403_024d);
    assert_eq!(machine.read(0x2fff, 1), 0);
}

#[test]
fn without_msix_the_isr_tells() {
    let machine = Machine::active();
    machine.config_write(machine.capability(0x11, None) + 2, &[0, 0]);
    machine.link.used(0);
    assert_eq!([machine.read(0x1000, 1), machine.read(0x1000, 4)], [1, 0]);
}

#[test]
fn a_host_that_fails_costs_the_driver_its_device() {
    let machine = Machine::with(Recorder { fails: true, ..Recorder::default() });
    machine.config_write(4, &[2]);
    assert_eq!(machine.wiring.take(), [Told::Kicks(Some(BAR + 0x3000))]);
    machine.negotiate(OFFERED);
    machine.write(20, 0xf, 1);
    machine.write(0x3000, 0, 2);
    assert_eq!(machine.wiring.take(), [Told::Activate(OFFERED, vec![false, false]), Told::Kick(0)]);
    machine.config_write(machine.capability(0x11, None) + 2, &[0, 0x80]);
    machine.write(0x400c, 0, 4);
    assert_eq!(machine.read(20, 1), 0x4f);
}

#[test]
fn impossible_devices_are_refused() {
    let build = |sizes: Vec<u16>, link: usize| {
        let identity = Identity {
            device_type: 1,
            pci_class: 0,
            features: 0,
            queue_sizes: sizes,
            config: Arc::new(ConfigSpace::read_only(vec![])),
        };
        let guest = Guest::new(&[]);
        let link = Link::new(link).unwrap();
        VirtioFunction::new(identity, BAR, guest.memory, link, Recorder::default()).err()
    };
    assert!(matches!(build(vec![100], 1), Some(BuildError::QueueSize(100))));
    assert!(matches!(build(vec![2048], 1), Some(BuildError::QueueSize(2048))));
    assert!(matches!(build(vec![16], 2), Some(BuildError::Queues(1))));
    assert!(matches!(build(vec![2; 256], 256), Some(BuildError::Queues(256))));
    assert!(build(vec![2; 255], 255).is_none());
}

/// What a guest, and the loop beside it, can do.
#[derive(Clone, Debug)]
enum Step {
    ConfigRead(u16, usize),
    ConfigWrite(u16, Vec<u8>),
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Used(u16),
    ResetDone,
    NeedsReset,
    MachineReset,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..9),
            prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(3), Just(0xb), Just(0xf)], 1..5)
        ]
    };
    let offset = || {
        prop_oneof![
            4 => 0..64u64,
            1 => (0..6u64, 0..64u64).prop_map(|(page, at)| page * 0x1000 + at),
            1 => 0..BAR_LEN,
        ]
    };
    prop_oneof![
        2 => (0..0x1000u16, 0..9usize).prop_map(|(at, len)| Step::ConfigRead(at, len)),
        4 => (0..0x100u16, bytes()).prop_map(|(at, data)| Step::ConfigWrite(at, data)),
        4 => (offset(), 0..9usize).prop_map(|(at, len)| Step::Read(at, len)),
        12 => (offset(), bytes()).prop_map(|(at, data)| Step::Write(at, data)),
        1 => any::<u16>().prop_map(Step::Used),
        1 => Just(Step::ResetDone),
        1 => Just(Step::NeedsReset),
        1 => Just(Step::MachineReset),
    ]
}

proptest! {
    /// No access panics, and the loop is told to activate and to reset in turn.
    #[test]
    fn hostile_drivers_change_nothing_but_their_own_device(steps in prop::collection::vec(step(), 1..300)) {
        let machine = Machine::active();
        let mut active = true;
        for step in steps {
            let mut data = [0; 8];
            match step {
                Step::ConfigRead(at, len) => machine.bus.config_read(SLOT + u64::from(at), &mut data[..len]),
                Step::ConfigWrite(at, data) => machine.config_write(at, &data),
                Step::Read(at, len) => drop(machine.bus.mmio_read(BAR + at, &mut data[..len])),
                Step::Write(at, data) => {
                    machine.config_write(4, &[2]);
                    machine.bus.mmio_write(BAR + at, &data);
                }
                Step::Used(queue) => machine.link.used(queue),
                Step::ResetDone => machine.link.reset_done(),
                Step::NeedsReset => machine.link.needs_reset(),
                Step::MachineReset => machine.bus.reset(),
            }
            for told in machine.wiring.take() {
                match told {
                    Told::Activate(features, ready) => {
                        assert!(!std::mem::replace(&mut active, true));
                        assert_eq!((features & !OFFERED, features >> 32, ready.len()), (0, 1, 2));
                    }
                    Told::Reset => assert!(std::mem::replace(&mut active, false)),
                    Told::Kick(queue) => assert!(active && queue < 2),
                    Told::Kicks(_) => {}
                    Told::Route(vector, _) => assert!(vector < 3),
                }
            }
        }
    }
}

#[test]
fn a_driver_goes_on_where_it_was_saved() {
    let before = Machine::active();
    before.write(22, 0, 2);
    before.config_write(before.capability(0x11, None) + 2, &[0, 0xc0]);
    before.link.used(0);
    before.write(0x2004, 9, 1);
    let mut saved = before.bus.save();
    let queue = &mut saved.get_mut(&3).unwrap().virtio.as_mut().unwrap().queues[1];
    queue.position = Some(Position { next_available: 7, next_used: 5 });
    // As it is written to a file and read again.
    let saved = serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap();

    let after = Machine::new();
    after.bus.restore(&saved).unwrap();
    let told = after.wiring.take();
    assert_eq!(told, [Told::Kicks(Some(BAR + 0x3000)), Told::Activate(OFFERED, vec![true, true])], "masked");
    assert_eq!(after.wiring.positions(), [(0, 0), (7, 5)]);
    for offset in (0..56).step_by(4) {
        assert_eq!(after.read(offset, 4), before.read(offset, 4), "register {offset}");
    }
    assert_eq!(after.read(0x2004, 1), 9, "what the driver may write");
    assert_eq!(after.read(0x5000, 1), 0b10, "what had fired while it was masked");
    after.config_write(after.capability(0x11, None) + 2, &[0, 0x80]);
    assert_eq!(after.fired(), [1]);
    // And what was never at work.
    let idle = Machine::found();
    let after = Machine::new();
    after.bus.restore(&idle.bus.save()).unwrap();
    assert!(!after.wiring.take().iter().any(|told| matches!(told, Told::Activate(..))));
}

#[test]
fn saved_state_that_makes_no_sense_is_refused() {
    type Spoil = fn(&mut Saved);
    let cases: [(&str, Spoil); 6] = [
        ("features", |saved| saved.driver_features |= 1 << 40),
        ("number of queues", |saved| saved.queues.truncate(1)),
        ("outside of memory", |saved| saved.queues[0].used = u64::MAX - 3),
        ("vector that is not there", |saved| saved.queues[0].vector = 3),
        ("number of interrupt vectors", |saved| saved.msix = crate::pci::msix::Saved::default()),
        ("more of a configuration", |saved| saved.config.0.push(0)),
    ];
    for (text, spoil) in cases {
        let mut saved = Machine::active().bus.save();
        spoil(saved.get_mut(&3).unwrap().virtio.as_mut().unwrap());
        let error = Machine::new().bus.restore(&saved).unwrap_err();
        assert!(error.source.0.contains(text), "{text}: {}", error.source);
    }
}
