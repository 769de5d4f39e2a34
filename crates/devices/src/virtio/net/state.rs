//! All of a card that a reset clears: its queues, and what the driver has asked for.

use std::sync::Arc;

use virtio_bindings::virtio_net::{VIRTIO_NET_ERR, VIRTIO_NET_OK};

use super::{
    control::Ask,
    features::Features,
    filter::{Address, Filter, is_multicast},
    receive::Receiver,
    transmit::Transmitter,
};
use crate::virtio::{Again, Buffers, GuestFault, Interrupt, Position, VirtQueue};

pub(super) struct State {
    features: Features,
    pairs: Vec<Pair>,
    /// How many pairs the driver uses, at least one.
    in_use: usize,
    /// The pair that is served first when all are: a limit would else be the first pair's alone.
    next_pair: usize,
    control: Option<Control>,
    filter: Filter,
    /// The offloads that the driver has chosen since it was ready, if it has.
    chosen: Option<Features>,
}

pub(super) struct Pair {
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
}

struct Control {
    queue: VirtQueue,
    readable: Buffers,
    /// Of the command that is being done.
    writable: Buffers,
    head: u16,
    /// Commands until others get their turn.
    left: u16,
}

/// What a command comes to for the card.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wish {
    /// It makes no sense, or not with what was negotiated.
    Nonsense,
    /// The filter was changed.
    Filter,
    /// The card's address is this.
    Address(Address),
    /// The driver has made itself known to the network.
    Announced,
    /// So many pairs are in use.
    Pairs(usize),
    /// The driver chooses these offloads.
    Offloads(Features),
}

impl State {
    /// The queues as the features number them (virtio 1.2 section 5.1.2): without several pairs, the
    /// control queue is the third.
    pub(super) fn new(
        features: Features,
        queues: Vec<VirtQueue>,
        pairs: usize,
        mac: Address,
    ) -> Result<Self, GuestFault> {
        let pairs = if features.several_pairs() { pairs } else { 1 };
        let offloads = features.offloads();
        let mut queues = queues.into_iter();
        let mut state = Self {
            features,
            pairs: Vec::with_capacity(pairs),
            in_use: 1,
            next_pair: 0,
            control: None,
            filter: Filter::new(mac),
            chosen: None,
        };
        for _ in 0..pairs {
            let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
                return Err(GuestFault::Request("a network card without its queues"));
            };
            state.pairs.push(Pair {
                receiver: Receiver::new(receive, features.mergeable(), offloads.are_large()),
                transmitter: Transmitter::new(transmit),
            });
        }
        state.control = queues.next().filter(|_| features.control()).map(Control::new);
        Ok(state)
    }

    pub(super) fn is_control(&self, index: u16) -> bool {
        self.control.as_ref().is_some_and(|control| control.queue.index() == index)
    }

    /// A pair that is in use, and what it lets through.
    pub(super) fn pair(&mut self, index: usize) -> Option<(&mut Pair, &Filter)> {
        let Self { pairs, in_use, filter, .. } = self;
        let pair = pairs.get_mut(..*in_use)?.get_mut(index)?;
        Some((pair, filter))
    }

    /// Where each queue stands, in the order of their numbers.
    pub(super) fn positions(&self) -> Vec<Position> {
        let pairs =
            self.pairs.iter().flat_map(|pair| [pair.receiver.position(), pair.transmitter.position()]);
        pairs.chain(self.control.iter().map(|control| control.queue.position(0))).collect()
    }

    /// Whether so many pairs can be in use.
    pub(super) fn has_pairs(&self, count: usize) -> bool {
        (1..=self.pairs.len()).contains(&count)
    }

    pub(super) fn use_pairs(&mut self, count: usize) {
        self.in_use = count.clamp(1, self.pairs.len());
    }

    pub(super) fn pairs_in_use(&self) -> usize {
        self.in_use
    }

    /// The offloads that the driver has chosen, if it has: a set of features.
    pub(super) fn chosen(&self) -> Option<u64> {
        self.chosen.map(|Features(bits)| bits)
    }

    /// These as offloads that the driver can choose.
    pub(super) fn choosable(&self, bits: u64) -> Option<Features> {
        self.features.allows_offloads(bits).then_some(Features(bits))
    }

    /// The driver has chosen these.
    pub(super) fn choose(&mut self, chosen: Features) {
        let large = chosen.offloads().are_large();
        self.pairs.iter_mut().for_each(|pair| pair.receiver.expect_large(large));
        self.chosen = Some(chosen);
    }

    /// The pair to begin with when all are served, another one each time, and how many there are.
    pub(super) fn next_turn(&mut self) -> (usize, usize) {
        let first = self.next_pair.min(self.in_use - 1);
        self.next_pair = (first + 1) % self.in_use;
        (first, self.in_use)
    }

    /// Gets a driver's attention that can be asked to make itself known.
    pub(super) fn announcer(&self) -> Option<&Arc<dyn Interrupt>> {
        let control = self.control.as_ref().filter(|_| self.features.announces())?;
        Some(control.queue.interrupt())
    }

    /// What the driver asks next, if anything: [`Self::answer`] it. Not more at once than the queue holds;
    /// what is left then calls again.
    pub(super) fn next_wish(&mut self, again: &Again) -> Result<Option<Wish>, GuestFault> {
        let Some(control) = &mut self.control else { return Ok(None) };
        let ask = match control.next(again)? {
            None => return Ok(None),
            Some(Some(ask)) => ask,
            Some(None) => return Ok(Some(Wish::Nonsense)),
        };
        Ok(Some(self.understand(ask)))
    }

    fn understand(&mut self, ask: Ask) -> Wish {
        match ask {
            Ask::Receive(mode, on) => {
                self.filter.set(mode, on);
                Wish::Filter
            }
            Ask::Tables { unicast, multicast } => {
                self.filter.set_tables(unicast, multicast);
                Wish::Filter
            }
            Ask::Address(mac) if !is_multicast(&mac) => Wish::Address(mac),
            Ask::Announced => Wish::Announced,
            Ask::Pairs(count) if self.has_pairs(count.into()) => Wish::Pairs(count.into()),
            Ask::Offloads(bits) => self.choosable(bits).map_or(Wish::Nonsense, Wish::Offloads),
            Ask::Address(_) | Ask::Pairs(_) => Wish::Nonsense,
        }
    }

    /// Answers the last wish: whether it was done.
    pub(super) fn answer(&mut self, wish: Wish, done: bool) -> Result<(), GuestFault> {
        match wish {
            Wish::Address(mac) => self.filter.set_own(mac),
            Wish::Pairs(count) if done => self.in_use = count,
            Wish::Offloads(chosen) if done => self.choose(chosen),
            _ => {}
        }
        self.control.as_mut().map_or(Ok(()), |control| control.answer(done))
    }

    /// The driver hears of the answers.
    pub(super) fn answered(&mut self) -> Result<(), GuestFault> {
        let Some(control) = &mut self.control else { return Ok(()) };
        control.left = control.queue.size();
        control.queue.notify()
    }
}

impl Control {
    fn new(queue: VirtQueue) -> Self {
        Self {
            readable: Buffers::new(Arc::clone(queue.memory())),
            writable: Buffers::new(Arc::clone(queue.memory())),
            head: 0,
            left: queue.size(),
            queue,
        }
    }

    /// The next command; none within if it makes no sense.
    fn next(&mut self, again: &Again) -> Result<Option<Option<Ask>>, GuestFault> {
        if !self.queue.is_ready() {
            return Ok(None);
        }
        let Some(left) = self.left.checked_sub(1) else {
            again.call();
            return Ok(None);
        };
        let chain = loop {
            match self.queue.pop()? {
                Some(chain) => break chain,
                None if self.queue.enable_kicks()? => {}
                None => return Ok(None),
            }
        };
        self.left = left;
        self.head = chain.head_index();
        self.readable.clear();
        self.writable.clear();
        let (_, outcome) = Buffers::gather(chain, &mut self.readable, &mut self.writable);
        let sane = outcome.is_ok() && !self.writable.is_empty();
        Ok(Some(if sane { Ask::read(&self.readable) } else { None }))
    }

    fn answer(&mut self, done: bool) -> Result<(), GuestFault> {
        let [code, ..] = (if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR }).to_le_bytes();
        let written = self.writable.write_at(0, &[code]);
        self.queue.complete(self.head, u32::from(written > 0))
    }
}
