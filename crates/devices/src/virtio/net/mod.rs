//! virtio-net (virtio 1.2 section 5.1): Ethernet frames between a driver and a [`Port`].
//!
//! Frames go straight from guest memory to the port and back. A frame that needs more buffers than the
//! driver has offered so far is kept until there are enough, and dropped only if its queue could not
//! hold it.
//!
//! Limits: one pair of queues of 256 descriptors; frames up to 64 KiB; no control queue, so the driver
//! cannot filter or change the address. The link is always up.
//!
//! Invariant: a frame is in exactly one place: with the port, in the driver's buffers, or parked.

mod port;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use virtio_bindings::{
    virtio_ids::VIRTIO_ID_NET,
    virtio_net::{
        VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
    },
};

pub use self::port::{HEADER_LEN, Offloads, PIECES_MAX, Port};
use self::{receive::Receiver, transmit::Transmitter};
use super::{Again, ConfigSpace, GuestFault, Identity, Position, VirtQueue, VirtioDevice, Wake};

/// A network card.
pub struct Net<P> {
    port: P,
    features: u64,
    config: Arc<ConfigSpace>,
    /// Called when a wake ends with work left, so that others get their turn.
    again: Again,
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

/// All that a reset clears.
struct State {
    receiver: Receiver,
    transmitter: Transmitter,
}

#[derive(Default)]
struct Counters {
    rx_frames: u64,
    rx_bytes: u64,
    /// Frames that the driver's buffers could not hold.
    rx_dropped: u64,
    tx_frames: u64,
    tx_bytes: u64,
    /// Frames that the port refused.
    tx_dropped: u64,
    /// Chains that made no sense.
    refused: u64,
    errors: u64,
}

impl<P: Port> Net<P> {
    /// A card plugged into `port`.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(port: P, options: &Options) -> io::Result<Self> {
        Ok(Self {
            features: features(port.offloads(), options.mtu.is_some()),
            config: Arc::new(ConfigSpace::read_only(config(options))),
            again: Again::new()?,
            counters: Counters::default(),
            state: None,
            port,
        })
    }
}

impl<P: Port> VirtioDevice for Net<P> {
    fn identity(&self) -> Identity {
        Identity {
            device_type: VIRTIO_ID_NET,
            pci_class: PCI_CLASS_ETHERNET,
            features: self.features,
            queue_sizes: vec![QUEUE_SIZE; 2],
            config: Arc::clone(&self.config),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.port.descriptor(), self.again.as_raw_fd()]
    }

    fn activate(&mut self, features: u64, queues: Vec<VirtQueue>) -> Result<(), GuestFault> {
        self.reset();
        let mut queues = queues.into_iter();
        let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
            return Err(GuestFault::Request("a network card without its two queues"));
        };
        let offloads = negotiated_offloads(features);
        if let Err(error) = self.port.set_offloads(offloads) {
            // The driver merely gets work done that it could have done itself.
            log::warn!("the host offloads nothing to the guest's network card: {error}");
        }
        let large = offloads.tso4 || offloads.tso6 || offloads.uso;
        let mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        self.state = Some(State {
            receiver: Receiver::new(receive, mergeable, large),
            transmitter: Transmitter::new(transmit),
        });
        Ok(())
    }

    fn wake(&mut self, wake: Wake) -> Result<(), GuestFault> {
        let Some(State { receiver, transmitter }) = &mut self.state else { return Ok(()) };
        let mut more = false;
        if !matches!(wake, Wake::Queue(QUEUE_TRANSMIT)) {
            more |= receiver.run(&mut self.port, &mut self.counters)?;
        }
        if !matches!(wake, Wake::Queue(QUEUE_RECEIVE)) {
            more |= transmitter.run(&mut self.port, &mut self.counters)?;
        }
        if more {
            self.again.call();
        }
        Ok(())
    }

    fn reset(&mut self) {
        let Self { port: _, features: _, config: _, again: _, counters: _, state } = self;
        *state = None;
    }

    fn positions(&self) -> Vec<Position> {
        let Some(State { receiver, transmitter }) = &self.state else { return Vec::new() };
        vec![receiver.position(), transmitter.position()]
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        let Counters { rx_frames, rx_bytes, rx_dropped, tx_frames, tx_bytes, tx_dropped, refused, errors } =
            self.counters;
        vec![
            ("rx_frames", rx_frames),
            ("rx_bytes", rx_bytes),
            ("rx_dropped", rx_dropped),
            ("tx_frames", tx_frames),
            ("tx_bytes", tx_bytes),
            ("tx_dropped", tx_dropped),
            ("refused", refused),
            ("errors", errors),
        ]
    }
}

impl Counters {
    /// Something is wrong with the cable: a tap that is down, say. It may come back.
    fn note(&mut self, what: &str, error: &io::Error) {
        self.errors += 1;
        if self.errors.is_power_of_two() {
            log::warn!("cannot {what} a frame, the {}. failure so far: {error}", self.errors);
        }
    }
}

fn features(host: Offloads, mtu: bool) -> u64 {
    let offered = [
        (VIRTIO_NET_F_MAC, true),
        (VIRTIO_NET_F_STATUS, true),
        (VIRTIO_NET_F_MRG_RXBUF, true),
        (VIRTIO_NET_F_MTU, mtu),
        (VIRTIO_NET_F_CSUM, host.checksum),
        (VIRTIO_NET_F_GUEST_CSUM, host.checksum),
        (VIRTIO_NET_F_HOST_TSO4, host.tso4),
        (VIRTIO_NET_F_GUEST_TSO4, host.tso4),
        (VIRTIO_NET_F_HOST_TSO6, host.tso6),
        (VIRTIO_NET_F_GUEST_TSO6, host.tso6),
        (VIRTIO_NET_F_HOST_ECN, host.ecn),
        (VIRTIO_NET_F_GUEST_ECN, host.ecn),
        (VIRTIO_NET_F_HOST_USO, host.uso),
        (VIRTIO_NET_F_GUEST_USO4, host.uso),
        (VIRTIO_NET_F_GUEST_USO6, host.uso),
    ];
    offered.iter().filter(|(_, on)| *on).fold(0, |bits, (bit, _)| bits | 1 << bit)
}

/// What the driver can take. Segments without checksum offload cannot be, nor congestion notification
/// without segments of TCP, whatever it negotiated: the host would refuse all of it (virtio 1.2 section
/// 5.1.3.1 has what requires what).
fn negotiated_offloads(features: u64) -> Offloads {
    let has = |bit: u32| features & 1 << bit != 0;
    let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
    let tso4 = checksum && has(VIRTIO_NET_F_GUEST_TSO4);
    let tso6 = checksum && has(VIRTIO_NET_F_GUEST_TSO6);
    Offloads {
        checksum,
        tso4,
        tso6,
        ecn: (tso4 || tso6) && has(VIRTIO_NET_F_GUEST_ECN),
        // The host knows them only together.
        uso: checksum && has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
    }
}

/// `struct virtio_net_config`, as far as the offered features fill it.
fn config(options: &Options) -> Vec<u8> {
    let link = VIRTIO_NET_S_LINK_UP.to_le_bytes();
    let mut bytes = Vec::with_capacity(12);
    bytes.extend(options.mac);
    bytes.extend(&link[..2]);
    bytes.extend(1u16.to_le_bytes()); // max_virtqueue_pairs
    bytes.extend(options.mtu.unwrap_or(0).to_le_bytes());
    bytes
}

const QUEUE_RECEIVE: u16 = 0;
const QUEUE_TRANSMIT: u16 = 1;
const QUEUE_SIZE: u16 = 256;
const PCI_CLASS_ETHERNET: u32 = 0x02_00_00;
/// Header, Ethernet with a VLAN tag, and the largest IP packet.
const FRAME_MAX: u64 = HEADER_LEN + 18 + 65_535;
/// Frames each way until others get their turn.
const FRAMES_PER_WAKE: usize = 256;
