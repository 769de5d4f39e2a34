//! virtio-balloon. Nothing but whole pages of guest memory is discarded, and so many at most a wake.

#![no_main]

use std::{
    cell::{Cell, RefCell},
    io,
};

use arbitrary::Arbitrary;
use ec2vmm_devices::virtio::{
    DeviceAnswer, DeviceCommand, VirtioDevice,
    balloon::{Balloon, Options, Reclaim},
    testing::FakeTime,
};
use ec2vmm_devices_fuzz::{
    driver::{Message, Subject, play},
    memory::{GuestMemory, REGIONS},
    script::{Address, Script},
};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

thread_local! {
    static MEMORY: RefCell<GuestMemory> = RefCell::default();
    /// Calls since the last wake.
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static FAILS: Cell<bool> = const { Cell::new(false) };
}

#[derive(Arbitrary, Debug)]
enum Said {
    /// Page numbers.
    Pages(Vec<Address>),
    Numbers(Vec<u32>),
    /// Tags and values.
    Statistics(Vec<(u16, u64)>),
}

impl Message for Said {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Pages(pages) => {
                pages.iter().flat_map(|page| ((page.number() >> 12) as u32).to_le_bytes()).collect()
            }
            Self::Numbers(numbers) => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
            Self::Statistics(list) => list
                .iter()
                .flat_map(|(tag, value)| [tag.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat())
                .collect(),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Act {
    Target(u64),
    Ask,
    Look,
    Fail(bool),
    /// The driver says how large the balloon is.
    Actual(u32),
}

struct Pages;

impl Reclaim for Pages {
    fn discard(&self, address: GuestAddress, len: u64) -> io::Result<()> {
        let end = address.0.checked_add(len).expect("a range of memory");
        let inside = REGIONS.iter().any(|&(start, len)| start <= address.0 && end <= start + len as u64);
        assert!(inside && len > 0, "{len} bytes at {address:?} are no memory");
        assert!(address.0 % 4096 == 0 && len % 4096 == 0, "{len} bytes at {address:?} are no pages");
        CALLS.set(CALLS.get() + 1);
        if FAILS.get() { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }
}

struct World(Balloon<Pages>);

impl Subject for World {
    type Device = Balloon<Pages>;
    type Act = Act;

    fn device(&mut self) -> &mut Self::Device {
        &mut self.0
    }

    fn act(&mut self, act: Act) {
        match act {
            // Refused where it is too much, and where the driver gives no statistics.
            Act::Target(bytes) => drop(self.0.command(&DeviceCommand::SetBalloonTarget { bytes })),
            Act::Ask => drop(self.0.command(&DeviceCommand::RefreshBalloonStatistics)),
            Act::Look => match self.0.command(&DeviceCommand::ReadBalloon) {
                Ok(DeviceAnswer::Balloon(state)) => {
                    assert!(state.statistics.len() <= 100);
                    assert!(state.actual_bytes <= u64::from(u32::MAX) * 4096);
                }
                other => panic!("{other:?}"),
            },
            Act::Fail(fails) => FAILS.set(fails),
            Act::Actual(pages) => self.0.identity().config.write(4, &pages.to_le_bytes()),
        }
    }

    fn after_wake(&mut self) {
        let calls = CALLS.take();
        assert!(calls <= CALLS_PER_WAKE_MAX, "{calls} ranges discarded in one wake");
    }

    fn let_all_end(&mut self) {}
}

/// Of the inflate and the two report queues each: a wake's share, and a chain beyond it, a range of which can be
/// in three regions.
const CALLS_PER_WAKE_MAX: u64 = 3 * (1024 + 3 * 1024);

fuzz_target!(|script: Script<Said, Act>| {
    FAILS.set(false);
    let world = |_: &GuestMemory| {
        let options = Options { memory_bytes: u64::MAX, deflate_on_oom: true, free_page_reporting: true };
        World(Balloon::new(Pages, options, FakeTime::new().clock()).expect("a device"))
    };
    MEMORY.with_borrow_mut(|memory| play(memory, world, script));
});
