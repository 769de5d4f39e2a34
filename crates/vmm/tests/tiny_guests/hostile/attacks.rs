//! On virtqueues.

use super::{
    BALLOON, BLOCK, RNG, VSOCK,
    driver::{BUFFERS, Descriptor, Driver, INDIRECT, MEMORY_END, NEXT, SIZE, WRITE, put},
    script::{
        Access, Script,
        Width::{Byte, Quad, Word},
        once,
    },
    survives,
};

/// Every device, and a queue of it that takes what the driver gives.
const DEVICES: [(u8, u16); 4] = [(RNG, 0), (BALLOON, 0), (VSOCK, 1), (BLOCK, 0)];

/// Offers one chain to each device in turn, from a driver as new.
fn each(script: &mut Script, chain: impl Fn(&Driver, &mut Script, u16)) {
    for (slot, queue) in DEVICES {
        let mut driver = Driver::new(slot);
        driver.start(script, queues(queue));
        chain(&driver, script, queue);
        driver.offer(script, queue, 0);
        driver.kick(script, queue);
        driver.wait(script, queue);
        script.sign_of_life();
    }
}

/// All up to this one.
fn queues(last: u16) -> &'static [u16] {
    [0, 1, 2].get(..=usize::from(last)).unwrap()
}

#[test]
fn chains_that_follow_themselves() {
    let mut script = Script::default();
    for flags in [NEXT, NEXT | WRITE] {
        each(&mut script, |driver, script, queue| {
            let itself = Descriptor { address: BUFFERS, len: 16, flags, next: 0 };
            driver.describe(script, queue, 0, itself);
        });
    }
    let metrics = survives(script);
    assert_eq!(metrics.devices["vsock"]["refused"], 2);
    assert_eq!(metrics.devices["rng"]["served_bytes"], 16 * u64::from(SIZE));
}

#[test]
fn a_circle_of_all_descriptors() {
    let mut script = Script::default();
    each(&mut script, |driver, script, queue| {
        for index in 0..SIZE {
            let flags = if index % 2 == 0 { NEXT } else { NEXT | WRITE };
            let next = (index + 1) % SIZE;
            driver.describe(script, queue, index, Descriptor { address: BUFFERS, len: 512, flags, next });
        }
    });
    let metrics = survives(script);
    assert_eq!((metrics.devices["block0"]["refused"], metrics.devices["vsock"]["refused"]), (1, 1));
}

#[test]
fn buffers_that_are_no_memory() {
    let addresses =
        [MEMORY_END, MEMORY_END - 1, 0xc000_0000, 0xe000_0000, 0xfee0_0000, 1 << 32, 1 << 63, u64::MAX - 1];
    let mut script = Script::default();
    for (slot, queue) in DEVICES {
        let mut driver = Driver::new(slot);
        driver.map(&mut script);
        for address in addresses {
            for flags in [0, WRITE] {
                driver.restart(&mut script, queues(queue));
                driver.describe(&mut script, queue, 0, Descriptor { address, len: 0x1000, flags, next: 0 });
                driver.offer(&mut script, queue, 0);
                driver.kick(&mut script, queue);
            }
        }
        driver.reset(&mut script);
    }
    let metrics = survives(script);
    assert_eq!(metrics.devices["rng"]["served_bytes"], 0);
}

#[test]
fn lengths_beyond_all_memory() {
    let mut script = Script::default();
    each(&mut script, |driver, script, queue| {
        for (index, flags) in [(0, NEXT), (1, NEXT | WRITE), (2, WRITE)] {
            let next = index + 1;
            driver.describe(script, queue, index, Descriptor { address: 0, len: u32::MAX, flags, next });
        }
    });
    let metrics = survives(script);
    assert_eq!((metrics.devices["block0"]["refused"], metrics.devices["vsock"]["refused"]), (1, 1));
}

#[test]
fn next_descriptors_that_are_not_there() {
    let mut script = Script::default();
    for next in [SIZE, 0x7fff, 0xffff] {
        each(&mut script, |driver, script, queue| {
            driver.describe(script, queue, 0, Descriptor { address: BUFFERS, len: 16, flags: NEXT, next });
        });
    }
    let metrics = survives(script);
    assert_eq!((metrics.devices["block0"]["refused"], metrics.devices["vsock"]["refused"]), (3, 3));
}

#[test]
fn tables_that_are_wrong() {
    let table = BUFFERS + 0x1_0000;
    // In itself, of no length, of a length that is no table's, too long, outside of memory.
    let tables = [
        (table, 16, INDIRECT),
        (table, 0, 0),
        (table, 17, 0),
        (table, 16 * 0xffff, NEXT),
        (table, 16 * 0xffff, NEXT | WRITE),
        (table, u32::MAX - 15, NEXT),
        (MEMORY_END - 8, 32, 0),
        (u64::MAX - 15, 32, 0),
    ];
    let mut script = Script::default();
    for (at, len, inner) in tables {
        each(&mut script, |driver, script, queue| {
            put(script, table, Descriptor { address: table, len: 16, flags: inner, next: 0 });
            // What else such a descriptor says means nothing.
            for (index, flags) in [(0, INDIRECT | NEXT), (1, INDIRECT), (2, INDIRECT | WRITE)] {
                driver.describe(script, queue, index, Descriptor { address: at, len, flags, next: index });
            }
        });
    }
    let metrics = survives(script);
    let refused = (metrics.devices["block0"]["refused"], metrics.devices["vsock"]["refused"]);
    assert_eq!(refused, (tables.len() as u64, tables.len() as u64));
}

#[test]
fn heads_and_indices_that_cannot_be() {
    let mut script = Script::default();
    for (slot, queue) in DEVICES {
        let mut driver = Driver::new(slot);
        driver.map(&mut script);
        for (head, index) in [(SIZE, 1), (0xffff, 1), (0, SIZE + 1), (0, 0x8000), (0, 0xffff)] {
            driver.restart(&mut script, queues(queue));
            driver.offer(&mut script, queue, head);
            let [_, available, _] = driver.ring(queue);
            script.write(once(Word, available + 2, index.into()));
            driver.kick(&mut script, queue);
            driver.wait_for_needs_reset(&mut script);
        }
        driver.reset(&mut script);
    }
    survives(script);
}

#[test]
fn rings_on_each_other() {
    let mut script = Script::default();
    for (slot, queue) in DEVICES {
        let mut driver = Driver::new(slot);
        driver.map(&mut script);
        for by in [0_u64, 2, 4, 6, 12] {
            driver.restart(&mut script, &[]);
            let [descriptors, available, _] = driver.ring(queue);
            let used = (available + by) & !3;
            // DRIVER_OK is there already: what follows must not take. So begin again, and stop before it.
            driver.set_up(&mut script, queue, [descriptors, available, used]);
            driver.reset(&mut script);
            for status in [1, 3] {
                script.write(once(Byte, driver.bar + 20, status));
            }
            script.write(once(Quad, driver.bar + 8, 1 << 32 | 1));
            script.write(once(Byte, driver.bar + 20, 0xb));
            for queue in 0..=queue {
                driver.set_up(&mut script, queue, [descriptors, available, used]);
            }
            script.write(once(Byte, driver.bar + 20, 0xf));
            let room = Descriptor { address: available, len: 64, flags: WRITE, next: 0 };
            driver.describe(&mut script, queue, 0, room);
            driver.offer(&mut script, queue, 0);
            driver.kick(&mut script, queue);
            driver.kick(&mut script, queue);
        }
        driver.reset(&mut script);
    }
    survives(script);
}

#[test]
fn around_the_end_of_all_indices() {
    let mut script = Script::default();
    let mut driver = Driver::new(RNG);
    driver.start(&mut script, &[0]);
    driver.describe(&mut script, 0, 0, Descriptor { address: BUFFERS, len: 1, flags: WRITE, next: 0 });
    let [_, available, used] = driver.ring(0);
    // 65,536 and a few, a queue at a time: the ring's slots all hold the first chain.
    for index in (u32::from(SIZE)..=0x1_0000 + u32::from(SIZE)).step_by(SIZE.into()) {
        script.write(once(Word, available + 2, (index & 0xffff).into()));
        driver.kick(&mut script, 0);
        script.wait(used, 0xffff_0000, index << 16);
        script.sign_of_life();
    }
    let metrics = survives(script);
    assert_eq!(metrics.devices["rng"]["served_bytes"], 0x1_0000 + u64::from(SIZE));
}

/// A read of the whole disk.
fn read_disk(driver: &mut Driver, script: &mut Script) {
    script.bytes(BUFFERS, &[0; 16]);
    let header = Descriptor { address: BUFFERS, len: 16, flags: NEXT, next: 1 };
    let data = Descriptor { address: BUFFERS + 0x10_0000, len: 1 << 20, flags: NEXT | WRITE, next: 2 };
    let status = Descriptor { address: BUFFERS + 0x20, len: 1, flags: WRITE, next: 0 };
    for (index, descriptor) in [(0, header), (1, data), (2, status)] {
        driver.describe(script, 0, index, descriptor);
    }
    driver.offer(script, 0, 0);
    driver.kick(script, 0);
}

#[test]
fn resets_in_the_middle_of_requests() {
    let mut script = Script::default();
    let mut driver = Driver::new(BLOCK);
    driver.map(&mut script);
    for _ in 0..50 {
        driver.restart(&mut script, &[0]);
        read_disk(&mut driver, &mut script);
        // Not waited for: status 0 again and again, and all else while the reset is under way.
        script.write(Access { width: Byte, at: driver.bar + 20, value: 0, times: 5, step: 0 });
        driver.set_up(&mut script, 0, driver.ring(0));
        script.write(once(Byte, driver.bar + 20, 0xf));
    }
    driver.reset(&mut script);
    driver.restart(&mut script, &[0]);
    read_disk(&mut driver, &mut script);
    driver.wait(&mut script, 0);
    let metrics = survives(script);
    assert!(metrics.devices["block0"]["reads"] >= 1, "an honest driver is served again");
}

#[test]
fn queues_set_up_again_while_they_are_at_work() {
    let mut script = Script::default();
    let mut driver = Driver::new(BLOCK);
    driver.start(&mut script, &[0]);
    for _ in 0..10 {
        read_disk(&mut driver, &mut script);
        driver.set_up(&mut script, 0, [0, 8, 16]);
        script.write(once(Word, driver.bar + 28, 0));
        // The device's configuration, which is not the driver's, and its status backwards.
        script.write(Access { width: Quad, at: driver.bar + 0x2000, value: u64::MAX, times: 16, step: 8 });
        script.write(once(Byte, driver.bar + 20, 1));
    }
    driver.wait(&mut script, 0);
    let metrics = survives(script);
    assert_eq!(metrics.devices["block0"]["reads"], 10);
}

#[test]
fn a_driver_that_breaks_the_rules_again_and_again() {
    let mut script = Script::default();
    let mut driver = Driver::new(RNG);
    driver.map(&mut script);
    for _ in 0..100 {
        driver.restart(&mut script, &[0]);
        driver.offer(&mut script, 0, 0xffff);
        driver.kick(&mut script, 0);
        driver.wait_for_needs_reset(&mut script);
        script.sign_of_life();
    }
    survives(script);
}

/// A guest that resets its machine while its devices are at work.
pub(crate) fn reboot_at_work() -> Vec<u8> {
    let mut script = Script::default();
    each(&mut script, |driver, script, queue| {
        let room = Descriptor { address: BUFFERS, len: 4096, flags: WRITE, next: 0 };
        driver.describe(script, queue, 0, room);
    });
    let mut driver = Driver::new(BLOCK);
    driver.start(&mut script, &[0]);
    read_disk(&mut driver, &mut script);
    script.kernel_that_resets()
}
