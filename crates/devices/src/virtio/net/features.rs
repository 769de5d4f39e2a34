//! What a card offers (virtio 1.2 sections 5.1.3 and 5.1.4).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};

use super::{Offloads, Options};

/// A set of features.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Features(pub(super) u64);

impl Features {
    pub(super) fn offered(host: Offloads, options: &Options, pairs: u16) -> Self {
        let offered = [
            (VIRTIO_NET_F_MAC, true),
            (VIRTIO_NET_F_STATUS, true),
            (VIRTIO_NET_F_MRG_RXBUF, true),
            (VIRTIO_NET_F_MTU, options.mtu.is_some()),
            (VIRTIO_NET_F_CTRL_VQ, true),
            (VIRTIO_NET_F_CTRL_RX, true),
            (VIRTIO_NET_F_CTRL_RX_EXTRA, true),
            (VIRTIO_NET_F_CTRL_MAC_ADDR, true),
            (VIRTIO_NET_F_GUEST_ANNOUNCE, true),
            (VIRTIO_NET_F_MQ, pairs > 1),
            (VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, host.checksum),
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
        Self(offered.iter().filter(|(_, on)| *on).fold(0, |bits, (bit, _)| bits | 1 << bit))
    }

    fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    pub(super) fn mergeable(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// Several pairs of queues, of which the last is followed by the control queue.
    pub(super) fn several_pairs(self) -> bool {
        self.has(VIRTIO_NET_F_MQ)
    }

    pub(super) fn control(self) -> bool {
        self.has(VIRTIO_NET_F_CTRL_VQ)
    }

    /// The driver can be asked to make itself known, and answers.
    pub(super) fn announces(self) -> bool {
        self.control() && self.has(VIRTIO_NET_F_STATUS) && self.has(VIRTIO_NET_F_GUEST_ANNOUNCE)
    }

    /// Whether a driver that has negotiated these can ask for no more than `asked`: offloads only, and of
    /// those it has negotiated.
    pub(super) fn allows_offloads(self, asked: u64) -> bool {
        self.has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) && asked & !(self.0 & GUEST_OFFLOADS) == 0
    }

    /// What the driver can take. Segments without checksum offload cannot be, nor congestion notification
    /// without segments of TCP, whatever it negotiated: the host would refuse all of it (virtio 1.2 section
    /// 5.1.3.1 has what requires what).
    pub(super) fn offloads(self) -> Offloads {
        let checksum = self.has(VIRTIO_NET_F_GUEST_CSUM);
        let tso4 = checksum && self.has(VIRTIO_NET_F_GUEST_TSO4);
        let tso6 = checksum && self.has(VIRTIO_NET_F_GUEST_TSO6);
        Offloads {
            checksum,
            tso4,
            tso6,
            ecn: (tso4 || tso6) && self.has(VIRTIO_NET_F_GUEST_ECN),
            // The host knows them only together.
            uso: checksum && self.has(VIRTIO_NET_F_GUEST_USO4) && self.has(VIRTIO_NET_F_GUEST_USO6),
        }
    }
}

/// `struct virtio_net_config`, as far as the offered features fill it.
pub(super) fn config(options: &Options, pairs: u16) -> Vec<u8> {
    let link = VIRTIO_NET_S_LINK_UP.to_le_bytes();
    let mut bytes = Vec::with_capacity(12);
    bytes.extend(options.mac);
    bytes.extend(&link[..2]);
    bytes.extend(pairs.to_le_bytes()); // max_virtqueue_pairs
    bytes.extend(options.mtu.unwrap_or(0).to_le_bytes());
    bytes
}

/// Where the address is in the configuration.
pub(super) const CONFIG_MAC: usize = 0;
/// Where the status is in the configuration, of which the first byte has all bits there are.
pub(super) const CONFIG_STATUS: usize = 6;
/// In that first byte.
pub(super) const STATUS_ANNOUNCE: u8 = VIRTIO_NET_S_ANNOUNCE.to_le_bytes()[0];

/// What of received frames can be left to the driver.
const GUEST_OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;
