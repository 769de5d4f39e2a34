//! On configuration space, base addresses, MSI-X, ports and memory where nothing is.

use super::{
    BALLOON, BLOCK, PVPANIC, RNG, VSOCK,
    driver::{BUFFERS, Descriptor, Driver, ECAM, WRITE},
    script::{
        Access, Script,
        Width::{Byte, Double, Quad, Word},
        once,
    },
    survives,
};

const ALL: [u8; 4] = [RNG, BALLOON, VSOCK, BLOCK];

#[test]
fn base_addresses_anywhere() {
    let mut script = Script::default();
    // Onto RAM, interrupt controllers, configuration space, the ends of all addresses, and each other.
    let places =
        [0, 0x10_0000, 0xfec0_0000, 0xfee0_0000, ECAM, 1 << 32, u64::MAX - 0x7fff, 1 << 63, 0xc800_0000];
    let mut driver = Driver::new(RNG);
    driver.start(&mut script, &[0]);
    driver.describe(&mut script, 0, 0, Descriptor { address: BUFFERS, len: 8, flags: WRITE, next: 0 });
    for place in places {
        for slot in ALL {
            let other = Driver::new(slot);
            driver.offer(&mut script, 0, 0);
            driver.kick(&mut script, 0);
            other.move_to(&mut script, place);
            script.write(once(Word, other.config(4), 6));
            driver.kick(&mut script, 0);
        }
        // Where all of them claim to be. Some of the places are memory, with the guest's own tables in it.
        if (0xc000_0000..0xfe00_0000).contains(&place) {
            script.write(Access { width: Double, at: place, value: 0, times: 0x20, step: 4 });
            script.write(Access { width: Word, at: place + 0x3000, value: 0, times: 10, step: 4 });
            script.read(Access { width: Quad, at: place, value: 0, times: 0x20, step: 8 });
        }
    }
    for slot in ALL {
        Driver::new(slot).map(&mut script);
    }
    driver.restart(&mut script, &[0]);
    driver.describe(&mut script, 0, 0, Descriptor { address: BUFFERS, len: 8, flags: WRITE, next: 0 });
    driver.offer(&mut script, 0, 0);
    driver.kick(&mut script, 0);
    driver.wait(&mut script, 0);
    let metrics = survives(script);
    assert!(metrics.devices["rng"]["served_bytes"] >= 8, "it works where it is put at last");
}

#[test]
fn interrupts_to_anywhere() {
    let mut script = Script::default();
    for slot in ALL {
        let mut driver = Driver::new(slot);
        driver.start(&mut script, &[0]);
        // MSI-X is the first capability.
        script.write(once(Word, driver.config(0x42), 0x8000));
        for (address, data) in [
            (0xfee0_0000_u64, 0x20_u32),
            (0xfee0_0000, 0),
            (0xfeef_f000, u32::MAX),
            (0, 0x20),
            (BUFFERS, 0x20),
            (u64::MAX - 3, u32::MAX),
            (0xc100_0000, 0x20),
        ] {
            let entry = driver.bar + 0x4000;
            script.write(once(Quad, entry, address));
            script.write(once(Double, entry + 8, data.into()));
            script.write(once(Double, entry + 12, 0));
            // The configuration's vector, and that of a queue; and one that is not there.
            for (register, vector) in [(16, 0), (26, 0), (26, 99), (26, 0)] {
                script.write(once(Word, driver.bar + register, vector));
            }
            let room = Descriptor { address: BUFFERS, len: 1, flags: WRITE, next: 0 };
            driver.describe(&mut script, 0, 0, room);
            driver.offer(&mut script, 0, 0);
            driver.kick(&mut script, 0);
            // Masked and not, as a whole and alone.
            script.write(once(Word, driver.config(0x42), 0xc000));
            script.write(once(Double, entry + 12, 1));
            script.write(once(Word, driver.config(0x42), 0x8000));
        }
        // Beyond the table, and the pending bits.
        script.write(Access { width: Quad, at: driver.bar + 0x4000, value: u64::MAX, times: 512, step: 8 });
        script.read(Access { width: Quad, at: driver.bar + 0x5000, value: 0, times: 512, step: 8 });
        script.write(once(Word, driver.config(0x42), 0));
        driver.reset(&mut script);
    }
    survives(script);
}

#[test]
fn every_byte_of_configuration_space() {
    let mut script = Script::default();
    for slot in [0, RNG, BALLOON, VSOCK, PVPANIC, BLOCK] {
        let function = Driver::new(slot);
        for value in [u64::MAX, 0, 0x5a5a_5a5a_5a5a_5a5a] {
            script.write(Access { width: Double, at: function.config(0), value, times: 1024, step: 4 });
            script.write(Access { width: Byte, at: function.config(0), value, times: 256, step: 1 });
        }
        script.read(Access { width: Word, at: function.config(0), value: 0, times: 512, step: 2 });
    }
    // The other functions of each, those that are not there, and buses beyond the first.
    script.write(Access { width: Double, at: ECAM, value: u64::MAX, times: 1024, step: 0x1000 });
    script.read(Access { width: Double, at: ECAM, value: 0, times: 1024, step: 0x1000 });
    // By ports, with and without the bit that turns them on; not the byte at 0xcf9, which resets.
    for address in [0x8000_0000_u64, 0x8000_0800, 0x80ff_fffc, 0xffff_ffff, 0] {
        script.write_port(once(Double, 0xcf8, address));
        for width in [Byte, Word, Double] {
            script.write_port(Access { width, at: 0xcfc, value: u64::MAX, times: 4, step: 1 });
            script.read_port(Access { width, at: 0xcfc, value: 0, times: 4, step: 1 });
        }
    }
    survives(script);
}

#[test]
fn the_window_of_configuration_space() {
    let mut script = Script::default();
    let driver = Driver::new(RNG);
    driver.map(&mut script);
    // Wherever the window's capability is: its fields and data, all over the capabilities.
    for at in (0x40..0xf0).step_by(4) {
        for value in [0, 1, 2, 4, 0x14, 0x3000, 0x7ffc, 0xffff_fffc] {
            script.write(once(Double, driver.config(at), value));
        }
        script.read(Access { width: Double, at: driver.config(0x40), value: 0, times: 44, step: 4 });
    }
    survives(script);
}

#[test]
fn every_port() {
    let mut script = Script::default();
    // But for power and reset, which would end the attack. A sign of life now and then: it takes a while.
    let sweep = |script: &mut Script, width, from: u64, to: u64| {
        for at in (from..to).step_by(0x1000) {
            let times = (to - at).min(0x1000);
            script.write_port(Access { width, at, value: 0x1111_1111, times, step: 1 });
            script.sign_of_life();
        }
    };
    for (from, to) in [(0, 0x600), (0x603, 0xcf9), (0xcfa, 0x1_0000)] {
        sweep(&mut script, Byte, from, to);
    }
    for width in [Word, Double] {
        for (from, to) in [(0, 0x500), (0x603, 0xcf5), (0xcfa, 0xd10), (0xfff0, 0x1_0000)] {
            sweep(&mut script, width, from, to);
        }
    }
    for width in [Byte, Word, Double] {
        script.read_port(Access { width, at: 0, value: 0, times: 0x1000, step: 1 });
        script.sign_of_life();
    }
    survives(script);
}

#[test]
fn ports_by_instructions_that_repeat() {
    let mut script = Script::default();
    script.write_port(once(Double, 0xcf8, 0x8000_0800));
    for at in [0x3f8, 0x3fd, 0x70, 0x71, 0x601, 0x602, 0xcf8, 0xcfc, 0xcfe, 0x80, 0xffff] {
        for width in [Byte, Word, Double] {
            // KVM hands over up to a page at once. What comes back is mostly ones.
            script.strings(Access { width, at, value: BUFFERS, times: 1200, step: 0 });
            script.sign_of_life();
        }
    }
    survives(script);
}

#[test]
fn memory_where_nothing_is() {
    let mut script = Script::default();
    for at in [64 << 20, 0x8000_0000_u64, 0xc000_0000, 0xe010_0000, 0xf000_0000, 0xfec0_0000, 0xfed0_0000] {
        for width in [Byte, Word, Double, Quad] {
            script.write(Access { width, at, value: u64::MAX, times: 64, step: 64 });
            script.read(Access { width, at, value: 0, times: 64, step: 64 });
        }
    }
    survives(script);
}

#[test]
fn floods() {
    let mut script = Script::default();
    let mut driver = Driver::new(RNG);
    driver.start(&mut script, &[0]);
    driver.describe(&mut script, 0, 0, Descriptor { address: BUFFERS, len: 1, flags: WRITE, next: 0 });
    driver.offer(&mut script, 0, 0);
    // Kicks of a queue that has something and of one that is not there, events, the clock, the serial port,
    // and a panic's lesser brother.
    script.write(Access { width: Word, at: driver.bar + 0x3000, value: 0, times: 20_000, step: 0 });
    script.write(Access { width: Word, at: driver.bar + 0x3ffc, value: 0, times: 5000, step: 0 });
    script.read_port(Access { width: Byte, at: 0x602, value: 0, times: 5000, step: 0 });
    script.write_port(Access { width: Byte, at: 0x71, value: 0x99, times: 5000, step: 0 });
    script.write_port(Access { width: Byte, at: 0x3f8, value: b'x'.into(), times: 20_000, step: 0 });
    let panics = Driver::new(PVPANIC);
    panics.map(&mut script);
    script.write(Access { width: Byte, at: panics.bar, value: 2, times: 5000, step: 0 });
    let metrics = survives(script);
    assert_eq!(metrics.devices["rng"]["served_bytes"], 1);
}
