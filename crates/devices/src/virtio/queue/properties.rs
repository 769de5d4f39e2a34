//! What the arithmetic of a queue comes to, wherever its indices begin.

use std::{collections::VecDeque, sync::Arc};

use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::VirtQueue;
use crate::virtio::{
    Buffers, Interrupt,
    testing::{Buffer, Guest},
};

#[derive(Clone, Debug)]
enum Step {
    /// The driver makes so many chains available, as far as the queue has room.
    Offer(u16),
    /// The device takes so many.
    Pop(u16),
    UndoPop,
    /// It gives so many back, one by one or together.
    Complete(u16, bool),
    Notify,
    /// The driver's wish: flags, or the index at which it wants to hear.
    Wish(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..10u16).prop_map(Step::Offer),
        4 => (0..10u16).prop_map(Step::Pop),
        1 => Just(Step::UndoPop),
        4 => (0..10u16, any::<bool>()).prop_map(|(count, together)| Step::Complete(count, together)),
        3 => Just(Step::Notify),
        2 => prop_oneof![Just(0), Just(1), any::<u16>()].prop_map(Step::Wish),
    ]
}

/// A queue of eight, and what must be true of it.
struct Pair {
    guest: Guest,
    queue: VirtQueue,
    event_idx: bool,
    /// Heads that were offered and not taken, oldest first; taken and not given back; given back.
    offered: VecDeque<u16>,
    taken: VecDeque<u16>,
    /// Whether the last thing taken was not followed by another deed with the queue.
    may_undo: bool,
    next_head: u16,
    available: u16,
    used: u16,
    /// `used` when the device last thought of an interrupt.
    told: u16,
    wish: u16,
    interrupts: u64,
}

const SIZE: u16 = 8;

impl Pair {
    fn new(at: u16, event_idx: bool) -> Self {
        let mut guest = Guest::new(&[SIZE]);
        for index in 0..SIZE {
            guest.ring(0).write_descriptor(index, 0x10_0000, 16, 2, 0);
        }
        let mut queue = guest.ring(0).queue();
        queue.set_event_idx(event_idx);
        queue.set_next_avail(at);
        queue.set_next_used(at);
        guest.ring(0).set_available_index(at);
        let interrupt: Arc<dyn Interrupt> = guest.interrupts.clone();
        let queue = VirtQueue::new(0, queue, Arc::clone(&guest.memory), interrupt);
        Self {
            guest,
            queue,
            event_idx,
            offered: VecDeque::new(),
            taken: VecDeque::new(),
            may_undo: false,
            next_head: 0,
            available: at,
            used: at,
            told: at,
            wish: 0,
            interrupts: 0,
        }
    }

    fn play(&mut self, step: &Step) {
        match *step {
            Step::Offer(count) => (0..count).for_each(|_| self.offer()),
            Step::Pop(count) => (0..count).for_each(|_| self.pop()),
            Step::UndoPop if self.may_undo => {
                self.queue.undo_pop();
                self.offered.push_front(self.taken.pop_back().unwrap());
                self.may_undo = false;
            }
            Step::UndoPop => {}
            Step::Complete(count, together) => self.complete(count, together),
            Step::Notify => self.notify(),
            Step::Wish(wish) => {
                let ring = self.guest.ring(0);
                let at = ring.available + if self.event_idx { 4 + 2 * u64::from(SIZE) } else { 0 };
                self.guest.memory.write_obj(wish.to_le(), GuestAddress(at)).unwrap();
                self.wish = wish;
            }
        }
    }

    fn offer(&mut self) {
        if self.offered.len() + self.taken.len() >= usize::from(SIZE) {
            return;
        }
        let head = self.next_head;
        self.next_head = (head + 1) % SIZE;
        let slot = self.guest.ring(0).available + 4 + 2 * u64::from(self.available % SIZE);
        self.guest.memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.guest.ring(0).set_available_index(self.available);
        self.offered.push_back(head);
    }

    fn pop(&mut self) {
        let chain = self.queue.pop().unwrap();
        let head = self.offered.pop_front();
        assert_eq!(chain.as_ref().map(super::Chain::head_index), head);
        assert_eq!(chain.map_or(0, Iterator::count), usize::from(head.is_some()));
        self.may_undo = head.is_some();
        self.taken.extend(head);
    }

    fn complete(&mut self, count: u16, together: bool) {
        let count = usize::from(count).min(self.taken.len());
        let chains: Vec<_> = self.taken.drain(..count).map(|head| (head, u32::from(head) + 100)).collect();
        if together {
            self.queue.complete_together(&chains).unwrap();
        } else {
            chains.iter().for_each(|&(head, written)| self.queue.complete(head, written).unwrap());
        }
        for (head, written) in chains {
            let slot = self.guest.ring(0).used + 4 + 8 * u64::from(self.used % SIZE);
            let entry: [u32; 2] = self.guest.memory.read_obj(GuestAddress(slot)).unwrap();
            assert_eq!(entry.map(u32::from_le), [head.into(), written]);
            self.used = self.used.wrapping_add(1);
        }
        let at = GuestAddress(self.guest.ring(0).used + 2);
        let index: u16 = self.guest.memory.read_obj(at).unwrap();
        if count > 0 {
            assert_eq!(u16::from_le(index), self.used);
        }
        self.may_undo &= count == 0;
    }

    /// virtio 1.2 section 2.7.10: an interrupt if the driver's index was passed since the last time, or,
    /// without indices, unless it wants none.
    fn notify(&mut self) {
        let passed = std::iter::successors(Some(self.told), |index| Some(index.wrapping_add(1)))
            .take_while(|index| *index != self.used)
            .any(|index| index == self.wish);
        let any = self.told != self.used;
        let wanted = if self.event_idx { passed } else { any && self.wish & 1 == 0 };
        self.told = self.used;
        self.queue.notify().unwrap();
        self.interrupts += u64::from(wanted);
        assert_eq!(self.guest.interrupts.of_queue(0), self.interrupts);
    }
}

proptest! {
    #[test]
    fn a_queue_is_a_queue_around_the_end_of_its_indices(
        at in prop_oneof![any::<u16>(), 0xfff0u16..=0xffff],
        event_idx: bool,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut pair = Pair::new(at, event_idx);
        steps.iter().for_each(|step| pair.play(step));
    }

    /// Whatever the available ring says, a queue gives chains or a fault, and no more than it holds.
    #[test]
    fn no_index_gives_more_than_the_queue_holds(at: u16, index: u16, heads: [u16; 8]) {
        let mut pair = Pair::new(at, false);
        for (slot, head) in (0..).zip(heads) {
            let slot = pair.guest.ring(0).available + 4 + 2 * slot;
            pair.guest.memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        }
        pair.guest.ring(0).set_available_index(index);
        let mut taken = 0;
        while let Ok(Some(chain)) = pair.queue.pop() {
            let head = chain.head_index();
            prop_assert_eq!(head, heads[usize::from(at.wrapping_add(taken) % SIZE)]);
            prop_assert_eq!(chain.count(), usize::from(head < SIZE));
            prop_assert_eq!(pair.queue.complete(head, 0).is_ok(), head < SIZE);
            taken += 1;
        }
        let asked = index.wrapping_sub(at);
        prop_assert_eq!(taken, if asked > SIZE { 0 } else { asked });
    }

    /// What is not memory is never among the pieces, and the pieces of what is are all of it, in order.
    #[test]
    fn a_chain_is_gathered_whole_or_refused(
        pieces in prop::collection::vec((0u64..0x3000, 0u32..0x1800, any::<bool>()), 1..8),
    ) {
        const BASE: u64 = 0xf_f000; // two pages of memory, and none
        let mut guest = Guest::with_memory(&[SIZE], &[(0, 0x10_0000), (0x10_0000, 0x1000)]);
        let buffers: Vec<_> = pieces
            .iter()
            .map(|&(at, len, writable)| Buffer { address: BASE + at, len, writable })
            .collect();
        guest.ring(0).add(&buffers);
        let mut queue = guest.queues().remove(0);
        let chain = queue.pop().unwrap().unwrap();
        let memory = Arc::clone(&guest.memory);
        let (mut readable, mut writable) = (Buffers::new(Arc::clone(&memory)), Buffers::new(memory));
        let (last, outcome) = Buffers::gather(chain, &mut readable, &mut writable);
        let inside = |buffer: &Buffer| buffer.len == 0 || buffer.address + u64::from(buffer.len) <= 0x10_1000;
        let ordered = buffers.is_sorted_by_key(|buffer| buffer.writable);
        prop_assert_eq!(outcome.is_ok(), ordered && buffers.iter().all(inside));
        let bytes = |wanted: bool| -> u64 {
            let of_kind = buffers.iter().filter(|buffer| buffer.writable == wanted);
            of_kind.map(|buffer| u64::from(buffer.len)).sum()
        };
        if outcome.is_ok() {
            prop_assert_eq!((readable.len(), writable.len()), (bytes(false), bytes(true)));
        }
        for list in [&readable, &writable] {
            prop_assert_eq!(list.slices().map(|slice| slice.len() as u64).sum::<u64>(), list.len());
            prop_assert_eq!(list.slices().count(), list.segments());
        }
        prop_assert!(last.is_none_or(|last| last.0 < 0x10_1000));
    }
}
