//! The control queue (virtio 1.2 section 5.1.6.5): what the driver asks of its card. Each chain holds a
//! class, a command and its data to read, and room for one byte of answer.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST,
    VIRTIO_NET_CTRL_RX_NOMULTI, VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_PROMISC,
};

use super::filter::{Address, Mode, Table};
use crate::virtio::Buffers;

/// What a driver asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Ask {
    /// Switch a kind of frames on or off.
    Receive(Mode, bool),
    /// These addresses, besides the card's own.
    Tables { unicast: Table, multicast: Table },
    /// The card's own address.
    Address(Address),
    /// The driver has made itself known to the network.
    Announced,
    /// Use so many pairs of queues.
    Pairs(u16),
    /// Leave this work on received frames to the driver: bits of features.
    Offloads(u64),
}

impl Ask {
    /// None: it is nothing that makes sense.
    pub(super) fn read(chain: &Buffers) -> Option<Self> {
        let mut head = [0; 2];
        if chain.read_at(0, &mut head) != head.len() {
            return None;
        }
        let [class, command] = head.map(u32::from);
        Some(match (class, command) {
            (VIRTIO_NET_CTRL_RX, _) => Self::Receive(mode(command)?, u8::from_le_bytes(data(chain)?) != 0),
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                let (unicast, next) = table(chain, DATA)?;
                let (multicast, _) = table(chain, next)?;
                Self::Tables { unicast, multicast }
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => Self::Address(data(chain)?),
            (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => Self::Announced,
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                Self::Pairs(u16::from_le_bytes(data(chain)?))
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                Self::Offloads(u64::from_le_bytes(data(chain)?))
            }
            _ => return None,
        })
    }
}

fn mode(command: u32) -> Option<Mode> {
    Some(match command {
        VIRTIO_NET_CTRL_RX_PROMISC => Mode::Promiscuous,
        VIRTIO_NET_CTRL_RX_ALLMULTI => Mode::AllMulticast,
        VIRTIO_NET_CTRL_RX_ALLUNI => Mode::AllUnicast,
        VIRTIO_NET_CTRL_RX_NOMULTI => Mode::NoMulticast,
        VIRTIO_NET_CTRL_RX_NOUNI => Mode::NoUnicast,
        VIRTIO_NET_CTRL_RX_NOBCAST => Mode::NoBroadcast,
        _ => return None,
    })
}

/// All that follows class and command.
fn data<const N: usize>(chain: &Buffers) -> Option<[u8; N]> {
    (chain.len() == DATA + N as u64).then(|| at(chain, DATA))?
}

fn at<const N: usize>(chain: &Buffers, offset: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (chain.read_at(offset, &mut bytes) == N).then_some(bytes)
}

/// A count, and as many addresses. Returns where it ends.
fn table(chain: &Buffers, offset: u64) -> Option<(Table, u64)> {
    let count = u32::from_le_bytes(at(chain, offset)?);
    let first = offset + COUNT_LEN;
    let end = first + u64::from(count) * ADDRESS_LEN;
    if end > chain.len() {
        return None;
    }
    let addresses = (first..end).step_by(6).take(Table::ADDRESSES_MAX + 1);
    let addresses: Option<Vec<Address>> = addresses.map(|offset| at(chain, offset)).collect();
    Some((Table::new(addresses?), end))
}

/// Where a command's data begins.
const DATA: u64 = 2;
const COUNT_LEN: u64 = 4;
const ADDRESS_LEN: u64 = 6;
