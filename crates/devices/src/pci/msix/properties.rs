//! What every vector sends, whatever a guest writes, against a table written down plainly.

use std::{io, sync::Arc};

use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{MsiMessage, MsixTable, fire};

const VECTORS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Control(u16),
    Fire(usize),
    /// The host fails from now on, or no more.
    Fail(bool),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let control = (0..VECTORS as u64, any::<bool>())
        .prop_map(|(vector, masked)| Step::Write(vector * 16 + 12, vec![masked.into(), 0, 0, 0]));
    prop_oneof![
        4 => (0..64u64, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(at, data)| Step::Write(at, data)),
        4 => control,
        1 => any::<u64>().prop_map(|at| Step::Write(at, vec![0xff; 8])),
        4 => prop_oneof![Just(0x8000u16), Just(0xc000), Just(0), any::<u16>()].prop_map(Step::Control),
        4 => (0..VECTORS).prop_map(Step::Fire),
        1 => any::<bool>().prop_map(Step::Fail),
        1 => Just(Step::Reset),
    ]
}

/// KVM, and the table as the guest believes it to be.
struct World {
    eventfds: Arc<[EventFd]>,
    table: MsixTable,
    sent: [Option<MsiMessage>; VECTORS],
    fails: bool,
    model: Vec<u8>,
    control: u16,
    /// Fired and not delivered.
    waiting: [bool; VECTORS],
    delivered: [bool; VECTORS],
}

impl World {
    fn new() -> Self {
        let eventfds: Arc<[_]> = (0..VECTORS).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        Self {
            table: MsixTable::new(Arc::clone(&eventfds)),
            eventfds,
            sent: [None; VECTORS],
            fails: false,
            model: born(),
            control: 0,
            waiting: [false; VECTORS],
            delivered: [false; VECTORS],
        }
    }

    fn play(&mut self, step: &Step) {
        let mut whole = true;
        match step {
            Step::Write(at, data) => {
                self.table.write(*at, data);
                for (at, byte) in (*at..=u64::MAX).zip(data) {
                    let mask = match at % 16 {
                        0 => !3,
                        12 => 1,
                        13.. => 0,
                        _ => 0xff,
                    };
                    if let Some(place) = usize::try_from(at).ok().and_then(|at| self.model.get_mut(at)) {
                        *place = byte & mask;
                    }
                }
                whole = self.apply();
            }
            Step::Control(control) => {
                self.table.set_control(*control);
                self.control = *control;
                whole = self.apply();
            }
            Step::Fire(vector) => {
                fire(&self.eventfds[*vector]);
                self.waiting[*vector] = true;
            }
            Step::Fail(fails) => self.fails = *fails,
            Step::Reset => {
                // A machine's reset makes a new VM: nothing fails.
                self.fails = false;
                let Self { table, sent, .. } = self;
                table.reset(|vector, message| route(sent, false, vector, message)).unwrap();
                (self.model, self.control, self.waiting) = (born(), 0, [false; VECTORS]);
            }
        }
        self.deliver();
        if whole && !self.fails {
            self.check();
        }
    }

    fn apply(&mut self) -> bool {
        let Self { table, sent, fails, .. } = self;
        table.apply(|vector, message| route(sent, *fails, vector, message)).is_ok()
    }

    /// KVM takes what was fired on vectors that send something.
    fn deliver(&mut self) {
        for (vector, eventfd) in self.eventfds.iter().enumerate() {
            if self.sent[vector].is_some() && eventfd.read().is_ok() {
                self.waiting[vector] = false;
                self.delivered[vector] = true;
            }
        }
    }

    fn check(&mut self) {
        // What failed before is told again with the next change: have one.
        assert!(self.apply());
        self.deliver();
        let on = self.control & 0xc000 == 0x8000;
        for vector in 0..VECTORS {
            let entry = &self.model[vector * 16..][..16];
            let message = MsiMessage {
                address: u64::from_le_bytes(entry[..8].try_into().unwrap()),
                data: u32::from_le_bytes(entry[8..12].try_into().unwrap()),
            };
            let expected = (on && entry[12] == 0).then_some(message);
            assert_eq!(self.sent[vector], expected, "vector {vector}");
            let mut pending = [0xee];
            self.table.read_pending(0, &mut pending);
            let is_pending = pending[0] >> vector & 1 != 0;
            assert_eq!(is_pending, self.waiting[vector], "vector {vector}");
            assert!(!(is_pending && expected.is_some()), "what can be delivered is");
        }
        let mut table = vec![0; self.model.len()];
        self.table.read(0, &mut table);
        assert_eq!(table, self.model);
    }
}

fn route(
    sent: &mut [Option<MsiMessage>; VECTORS],
    fails: bool,
    vector: u16,
    message: Option<MsiMessage>,
) -> io::Result<()> {
    if fails {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let sent = &mut sent[usize::from(vector)];
    assert_ne!(sent.is_some(), message.is_some(), "attached twice, or detached twice");
    *sent = message;
    Ok(())
}

fn born() -> Vec<u8> {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0].repeat(VECTORS)
}

proptest! {
    #[test]
    fn every_vector_sends_what_the_table_says(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.play(step));
    }
}
