//! virtio-rng. One wake costs no more entropy than a queue of requests of the largest size.

#![no_main]

use std::{cell::RefCell, io};

use arbitrary::Arbitrary;
use ec2vmm_devices::virtio::rng::{Entropy, REQUEST_BYTES_MAX, Rng};
use ec2vmm_devices_fuzz::{
    driver::{Message, Subject, play, unlimited},
    memory::GuestMemory,
    script::Script,
};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static MEMORY: RefCell<GuestMemory> = RefCell::default();
    /// Bytes taken since the last wake, and whether there are none to take.
    static TAKEN: RefCell<(u64, bool)> = const { RefCell::new((0, false)) };
}

#[derive(Arbitrary, Debug)]
struct Text(Vec<u8>);

impl Message for Text {
    fn bytes(&self) -> Vec<u8> {
        self.0.clone()
    }
}

#[derive(Arbitrary, Debug)]
enum Act {
    RunDry(bool),
}

struct Source;

impl Entropy for Source {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        TAKEN.with_borrow_mut(|(taken, dry)| {
            if *dry {
                return Err(io::ErrorKind::Other.into());
            }
            *taken += bytes.len() as u64;
            bytes.fill(0x5a);
            Ok(())
        })
    }
}

struct World(Rng<Source>);

impl Subject for World {
    type Device = Rng<Source>;
    type Act = Act;

    fn device(&mut self) -> &mut Self::Device {
        &mut self.0
    }

    fn act(&mut self, Act::RunDry(dry): Act) {
        TAKEN.with_borrow_mut(|taken| taken.1 = dry);
    }

    fn after_wake(&mut self) {
        let taken = TAKEN.with_borrow_mut(|taken| std::mem::take(&mut taken.0));
        assert!(taken <= 64 * u64::from(REQUEST_BYTES_MAX), "{taken} bytes in one wake");
    }

    fn let_all_end(&mut self) {}
}

fuzz_target!(|script: Script<Text, Act>| {
    TAKEN.set((0, false));
    MEMORY.with_borrow_mut(|memory| {
        play(memory, |_| World(Rng::new(Source, unlimited()).expect("a device")), script)
    });
});
