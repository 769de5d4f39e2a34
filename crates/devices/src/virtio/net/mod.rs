//! virtio-net (virtio 1.2 section 5.1): Ethernet frames between a driver and [`Port`]s, one for each pair
//! of queues.
//!
//! Frames go straight from guest memory to the port and back. A frame that needs more buffers than the
//! driver has offered so far is kept until there are enough, and dropped only if its queue could not
//! hold it.
//!
//! Limits: 16 pairs of queues of 256 descriptors; frames up to 64 KiB; filters of 64 addresses each of one
//! and of many, beyond which all are let through. The link is always up. A driver that changes the card's
//! address is not kept from it here: what may be sent is the host's to say.
//!
//! Invariant: a frame is in exactly one place: with the port, in the driver's buffers, or parked.

mod control;
mod features;
mod filter;
mod port;
mod receive;
mod state;
#[cfg(test)]
mod tests;
mod transmit;

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

pub use self::port::{HEADER_LEN, Offloads, PIECES_MAX, Port};
use self::{
    features::{CONFIG_MAC, CONFIG_STATUS, Features, STATUS_ANNOUNCE, config},
    filter::Address,
    state::{State, Wish},
};
use super::{
    Again, CommandError, ConfigSpace, DeviceAnswer, DeviceCommand, DeviceState, GuestFault, Identity,
    Position, VirtQueue, VirtioDevice, Wake,
};
use crate::{rate_limit::RateLimiter, state::BadState};

/// A network card.
pub struct Net<P> {
    ports: Vec<P>,
    mac: Address,
    features: Features,
    config: Arc<ConfigSpace>,
    /// Called when a wake ends with work left, so that others get their turn.
    again: Again,
    limiters: Limiters,
    counters: Counters,
    state: Option<State>,
}

/// What a card is besides its cable.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// What the driver is told is the largest packet, 68 to 65,535 bytes, if anything.
    pub mtu: Option<u16>,
}

/// What holds frames up. Bytes are those of the frames, without the header before each.
pub struct Limiters {
    /// To the driver: what may not pass stays with the port.
    pub receive: RateLimiter,
    /// From the driver.
    pub transmit: RateLimiter,
}

#[derive(Default)]
struct Counters {
    rx_frames: u64,
    rx_bytes: u64,
    /// Frames that the driver's buffers could not hold.
    rx_dropped: u64,
    /// Frames that the driver's filter does not let through.
    rx_filtered: u64,
    tx_frames: u64,
    tx_bytes: u64,
    /// Frames that the port refused.
    tx_dropped: u64,
    /// Commands of the driver that were done.
    commands: u64,
    /// Chains and commands that made no sense.
    refused: u64,
    errors: u64,
}

impl<P: Port> Net<P> {
    /// A card plugged into `ports`, which belong to one cable: 1 to [`PAIRS_MAX`].
    ///
    /// # Errors
    /// The number of ports is out of range, or the host is out of descriptors.
    pub fn new(ports: Vec<P>, options: &Options, limiters: Limiters) -> io::Result<Self> {
        let pairs = u16::try_from(ports.len()).ok().filter(|count| (1..=PAIRS_MAX).contains(count));
        let (Some(pairs), Some(port)) = (pairs, ports.first()) else {
            let message = format!("{} ports: between 1 and {PAIRS_MAX} are possible", ports.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        let mut net = Self {
            mac: options.mac,
            features: Features::offered(port.offloads(), options, pairs),
            config: Arc::new(ConfigSpace::read_only(config(options, pairs))),
            again: Again::new()?,
            limiters,
            counters: Counters::default(),
            state: None,
            ports,
        };
        net.use_pairs(1);
        Ok(net)
    }

    /// Have the cable spread frames over so many ports.
    fn use_pairs(&mut self, count: usize) -> bool {
        let mut done = true;
        for (index, port) in self.ports.iter_mut().enumerate() {
            if let Err(error) = port.set_enabled(index < count) {
                done = false;
                self.counters.note("switch a queue for", &error);
            }
        }
        done
    }

    fn set_offloads(&mut self, offloads: Offloads) -> bool {
        let results = self.ports.iter_mut().map(|port| port.set_offloads(offloads));
        match results.reduce(Result::and) {
            Some(Err(error)) => {
                // The driver merely gets work done that it could have done itself.
                log::warn!("the host offloads nothing to the guest's network card: {error}");
                false
            }
            _ => true,
        }
    }

    /// The driver chose these offloads before it was saved.
    fn choose_again(&mut self, bits: u64) -> Result<(), BadState> {
        let state = self.state.as_ref();
        let chosen = state.and_then(|state| state.choosable(bits));
        let chosen = chosen.ok_or(BadState("a network card had offloads that its driver cannot choose"))?;
        if !self.set_offloads(chosen.offloads()) {
            return Err(BadState("a network card had offloads that the host does not have here"));
        }
        if let Some(state) = &mut self.state {
            state.choose(chosen);
        }
        Ok(())
    }

    fn set_mac(&self, mac: Address) {
        self.config
            .update(|bytes| bytes.iter_mut().skip(CONFIG_MAC).zip(mac).for_each(|(to, from)| *to = from));
    }

    /// The driver shall make itself known, or has.
    fn set_announce(&self, on: bool) {
        self.config.update(|bytes| {
            if let Some(status) = bytes.get_mut(CONFIG_STATUS) {
                *status = *status & !STATUS_ANNOUNCE | if on { STATUS_ANNOUNCE } else { 0 };
            }
        });
    }

    fn announce(&self) -> Result<(), CommandError> {
        let interrupt = self.state.as_ref().and_then(State::announcer).ok_or(CommandError::Unsupported)?;
        self.set_announce(true);
        interrupt.config_changed();
        Ok(())
    }

    /// Do what the driver asks on its control queue.
    fn obey(&mut self) -> Result<(), GuestFault> {
        while let Some(wish) = self.state.as_mut().map_or(Ok(None), |state| state.next_wish(&self.again))? {
            let done = match wish {
                Wish::Nonsense => false,
                Wish::Filter => true,
                Wish::Address(mac) => {
                    self.set_mac(mac);
                    true
                }
                Wish::Announced => {
                    self.set_announce(false);
                    true
                }
                Wish::Pairs(count) => {
                    let before = self.state.as_ref().map_or(1, State::pairs_in_use);
                    let done = self.use_pairs(count);
                    if !done {
                        self.use_pairs(before);
                    }
                    done
                }
                Wish::Offloads(chosen) => self.set_offloads(chosen.offloads()),
            };
            *(if done { &mut self.counters.commands } else { &mut self.counters.refused }) += 1;
            if let Some(state) = &mut self.state {
                state.answer(wish, done)?;
            }
        }
        self.state.as_mut().map_or(Ok(()), State::answered)
    }

    /// Move frames of one pair, each way that is asked for.
    fn run(&mut self, index: usize, receive: bool, transmit: bool) -> Result<(), GuestFault> {
        let Self { ports, limiters, counters, state, again, .. } = self;
        let Some((port, state)) = ports.get_mut(index).zip(state.as_mut()) else { return Ok(()) };
        let Some((pair, filter)) = state.pair(index) else { return Ok(()) };
        let mut more = false;
        if receive {
            more |= pair.receiver.run(port, filter, &mut limiters.receive, counters)?;
        }
        if transmit {
            more |= pair.transmitter.run(port, &mut limiters.transmit, counters)?;
        }
        if more {
            again.call();
        }
        Ok(())
    }

    fn run_all(&mut self) -> Result<(), GuestFault> {
        let (first, count) = self.state.as_mut().map_or((0, 0), State::next_turn);
        (first..count).chain(0..first).try_for_each(|index| self.run(index, true, true))
    }
}

impl<P: Port> VirtioDevice for Net<P> {
    fn identity(&self) -> Identity {
        Identity {
            device_type: VIRTIO_ID_NET,
            pci_class: PCI_CLASS_ETHERNET,
            features: self.features.0,
            // Pairs, and the control queue.
            queue_sizes: vec![QUEUE_SIZE; 2 * self.ports.len() + 1],
            config: Arc::clone(&self.config),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        let Limiters { receive, transmit } = &self.limiters;
        let ports = self.ports.iter().map(Port::descriptor);
        ports.chain([self.again.as_raw_fd(), receive.descriptor(), transmit.descriptor()]).collect()
    }

    fn activate(&mut self, features: u64, queues: Vec<VirtQueue>) -> Result<(), GuestFault> {
        self.reset();
        let features = Features(features);
        let state = State::new(features, queues, self.ports.len(), self.mac)?;
        self.set_offloads(features.offloads());
        self.state = Some(state);
        Ok(())
    }

    fn wake(&mut self, wake: Wake) -> Result<(), GuestFault> {
        match wake {
            Wake::Queue(index) if self.state.as_ref().is_some_and(|state| state.is_control(index)) => {
                self.obey()?;
                // More pairs may have come into use.
                self.run_all()
            }
            Wake::Queue(index) => {
                let (pair, transmits) = (usize::from(index / 2), index % 2 == 1);
                self.run(pair, !transmits, transmits)
            }
            Wake::Source(index) if index < self.ports.len() => self.run(index, true, true),
            Wake::Source(_) => {
                self.obey()?;
                self.run_all()
            }
        }
    }

    fn reset(&mut self) {
        // What was limited stays so: a guest must not come to more by a reset.
        let Self { ports: _, mac, features: _, config: _, again: _, limiters: _, counters: _, state } = self;
        let mac = *mac;
        if state.take().is_some() {
            self.set_mac(mac);
            self.set_announce(false);
            self.use_pairs(1);
        }
    }

    fn positions(&self) -> Vec<Position> {
        self.state.as_ref().map_or(Vec::new(), State::positions)
    }

    fn save(&self) -> Option<DeviceState> {
        let state = self.state.as_ref()?;
        let pairs = u16::try_from(state.pairs_in_use()).unwrap_or(u16::MAX);
        Some(DeviceState::Net { pairs, offloads: state.chosen() })
    }

    /// Filters are as at first, and let everything through.
    fn restore(&mut self, saved: &DeviceState) -> Result<(), BadState> {
        let DeviceState::Net { pairs, offloads } = saved;
        let pairs = usize::from(*pairs);
        let there = self.state.as_ref().is_some_and(|state| state.has_pairs(pairs));
        if !there || !self.use_pairs(pairs) {
            return Err(BadState("a network card used more queues than it has here"));
        }
        if let Some(state) = &mut self.state {
            state.use_pairs(pairs);
        }
        offloads.map_or(Ok(()), |bits| self.choose_again(bits))
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        let Counters {
            rx_frames,
            rx_bytes,
            rx_dropped,
            rx_filtered,
            tx_frames,
            tx_bytes,
            tx_dropped,
            commands,
            refused,
            errors,
        } = self.counters;
        vec![
            ("rx_frames", rx_frames),
            ("rx_bytes", rx_bytes),
            ("rx_dropped", rx_dropped),
            ("rx_filtered", rx_filtered),
            ("rx_throttled", self.limiters.receive.throttled()),
            ("tx_frames", tx_frames),
            ("tx_bytes", tx_bytes),
            ("tx_dropped", tx_dropped),
            ("tx_throttled", self.limiters.transmit.throttled()),
            ("queue_pairs", self.state.as_ref().map_or(0, |state| state.pairs_in_use() as u64)),
            ("commands", commands),
            ("refused", refused),
            ("errors", errors),
        ]
    }

    fn command(&mut self, command: &DeviceCommand) -> Result<DeviceAnswer, CommandError> {
        match *command {
            DeviceCommand::LimitFrames { receive, transmit } => {
                self.limiters.receive.set(receive);
                self.limiters.transmit.set(transmit);
            }
            DeviceCommand::Announce => self.announce()?,
            _ => return Err(CommandError::Unsupported),
        }
        Ok(DeviceAnswer::Done)
    }
}

impl Counters {
    /// Something is wrong with the cable: a tap that is down, say. It may come back.
    fn note(&mut self, what: &str, error: &io::Error) {
        self.errors += 1;
        log::warn!("cannot {what} a frame, the {}. failure so far: {error}", self.errors);
    }
}

/// The most pairs of queues.
pub const PAIRS_MAX: u16 = 16;
const QUEUE_SIZE: u16 = 256;
const PCI_CLASS_ETHERNET: u32 = 0x02_00_00;
/// Header, Ethernet with a VLAN tag, and the largest IP packet.
const FRAME_MAX: u64 = HEADER_LEN + 18 + 65_535;
/// Frames each way of a pair until others get their turn.
const FRAMES_PER_WAKE: usize = 256;
