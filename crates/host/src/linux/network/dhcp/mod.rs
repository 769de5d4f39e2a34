//! DHCP for one interface (RFC 2131): it has one address, and is told it whenever it asks.
//!
//! Invariant: one packet costs one answer of at most [`ANSWER_BYTES_MAX`] or none, and keeps nothing. Who
//! asks is known by the tap that the packet came from, not by what is in it.

pub(super) mod server;

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::{
    Decodable, Encodable,
    v4::{DhcpOption, HType, Message, MessageType, Opcode, OptionCode},
};

/// What an interface is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) mask: Ipv4Addr,
    /// Routes, and answers DHCP.
    pub(super) router: Ipv4Addr,
    pub(super) dns: Ipv4Addr,
    pub(super) mac: [u8; 6],
    pub(super) hostname: String,
    pub(super) domain: String,
    pub(super) mtu: u16,
}

/// A packet to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    pub(super) to: SocketAddrV4,
}

/// Why a packet gets no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Silence {
    /// It is no DHCP request of an Ethernet card.
    Malformed,
    /// It was relayed, or speaks for another card.
    Foreign,
    /// It wants no answer, or another server's.
    Unasked,
}

impl Lease {
    /// Answers a packet that came from the interface.
    pub(super) fn answer(&self, packet: &[u8]) -> Result<Answer, Silence> {
        let question = Message::from_bytes(packet).map_err(|_| Silence::Malformed)?;
        // `chaddr()` is read only once its length is known to be one.
        if question.opcode() != Opcode::BootRequest || question.htype() != HType::Eth || question.hlen() != 6
        {
            return Err(Silence::Malformed);
        }
        if !question.giaddr().is_unspecified() || question.chaddr() != self.mac {
            return Err(Silence::Foreign);
        }
        let kind = match question.opts().msg_type().ok_or(Silence::Malformed)? {
            MessageType::Discover => MessageType::Offer,
            MessageType::Request => self.judge(&question)?,
            MessageType::Inform => MessageType::Ack,
            // The address stays this interface's whatever it says.
            _ => return Err(Silence::Unasked),
        };
        self.write(&question, kind).ok_or(Silence::Malformed)
    }

    /// RFC 2131, 4.3.2: whether the client has, or may have, the address that it speaks of.
    fn judge(&self, question: &Message) -> Result<MessageType, Silence> {
        if let Some(DhcpOption::ServerIdentifier(server)) = question.opts().get(OptionCode::ServerIdentifier)
            && *server != self.router
        {
            return Err(Silence::Unasked);
        }
        let wanted = match question.opts().get(OptionCode::RequestedIpAddress) {
            Some(DhcpOption::RequestedIpAddress(address)) => *address,
            _ => question.ciaddr(),
        };
        Ok(if wanted == self.address { MessageType::Ack } else { MessageType::Nak })
    }

    fn write(&self, question: &Message, kind: MessageType) -> Option<Answer> {
        let is_inform = question.opts().has_msg_type(MessageType::Inform);
        let is_nak = kind == MessageType::Nak;
        let mut answer = Message::default();
        answer.set_opcode(Opcode::BootReply).set_htype(HType::Eth).set_xid(question.xid());
        answer.set_flags(question.flags()).set_chaddr(question.chaddr());
        if !is_nak {
            answer.set_ciaddr(question.ciaddr());
        }
        if !is_nak && !is_inform {
            answer.set_yiaddr(self.address);
        }
        let options = answer.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(self.router));
        // RFC 6842: who sends an identifier gets it back.
        if let Some(DhcpOption::ClientIdentifier(id)) = question.opts().get(OptionCode::ClientIdentifier)
            && id.len() <= CLIENT_ID_BYTES_MAX
        {
            options.insert(DhcpOption::ClientIdentifier(id.clone()));
        }
        if !is_nak {
            options.insert(DhcpOption::SubnetMask(self.mask));
            options.insert(DhcpOption::Router(vec![self.router]));
            options.insert(DhcpOption::DomainNameServer(vec![self.dns]));
            options.insert(DhcpOption::Hostname(self.hostname.clone()));
            options.insert(DhcpOption::DomainName(self.domain.clone()));
            options.insert(DhcpOption::InterfaceMtu(self.mtu));
        }
        if !is_nak && !is_inform {
            options.insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
            options.insert(DhcpOption::Renewal(LEASE_SECONDS / 2));
            options.insert(DhcpOption::Rebinding(LEASE_SECONDS / 8 * 7));
        }
        let mut bytes = answer.to_vec().ok()?;
        bytes.resize(bytes.len().max(BOOTP_BYTES_MIN), 0);
        Some(Answer { to: SocketAddrV4::new(self.destination(question, is_nak), CLIENT_PORT), bytes })
    }

    /// RFC 2131, 4.1.
    fn destination(&self, question: &Message, is_nak: bool) -> Ipv4Addr {
        if is_nak {
            Ipv4Addr::BROADCAST
        } else if question.ciaddr() == self.address {
            self.address
        } else if question.flags().broadcast() || !question.ciaddr().is_unspecified() {
            Ipv4Addr::BROADCAST
        } else {
            self.address
        }
    }
}

/// EC2's.
const LEASE_SECONDS: u32 = 3600;

/// RFC 1542, 2.1: what the oldest clients want.
const BOOTP_BYTES_MIN: usize = 300;

/// RFC 2131, 2: what every client takes.
#[cfg(test)]
const ANSWER_BYTES_MAX: usize = 576 - 28;

/// Longer ones, up to 255 bytes, no client uses.
const CLIENT_ID_BYTES_MAX: usize = 64;

/// Where clients listen.
const CLIENT_PORT: u16 = 68;
/// Where servers listen.
const SERVER_PORT: u16 = 67;
