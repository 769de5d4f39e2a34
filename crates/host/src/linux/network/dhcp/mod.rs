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
        let question = essence(packet).and_then(|packet| Message::from_bytes(&packet).ok());
        let question = question.ok_or(Silence::Malformed)?;
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
        if let Some(DhcpOption::ClientIdentifier(id)) = question.opts().get(OptionCode::ClientIdentifier) {
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

/// The packet without what is not looked at: only such options as an answer depends on, each once and of
/// its right length. The library asserts some lengths, and does not look at the cookie.
fn essence(packet: &[u8]) -> Option<Vec<u8>> {
    let (fixed, mut options) = packet.split_at_checked(OPTIONS_START)?;
    if !fixed.ends_with(&COOKIE) {
        return None;
    }
    let mut kept = fixed.to_vec();
    // Server name and boot file, which no option of ours overflows into.
    kept.get_mut(NAMES)?.fill(0);
    let mut seen = Vec::new();
    loop {
        options = match options {
            [] | [OPTION_END, ..] => break,
            [OPTION_PAD, rest @ ..] => rest,
            [code, length, rest @ ..] => {
                let (value, after) = rest.split_at_checked(usize::from(*length))?;
                let is_right = match OptionCode::from(*code) {
                    OptionCode::MessageType => value.len() == 1,
                    OptionCode::RequestedIpAddress | OptionCode::ServerIdentifier => value.len() == 4,
                    OptionCode::ClientIdentifier => (2..=CLIENT_ID_BYTES_MAX).contains(&value.len()),
                    _ => false,
                };
                if is_right && !seen.contains(code) {
                    seen.push(*code);
                    kept.extend([*code, *length]);
                    kept.extend(value);
                }
                after
            }
            [_] => return None,
        };
    }
    kept.push(OPTION_END);
    Some(kept)
}

/// RFC 2131, 2 and 3: the fixed part and its end.
const OPTIONS_START: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// `sname` and `file`.
const NAMES: std::ops::Range<usize> = 44..236;

/// RFC 2132, 3.1 and 3.2.
const OPTION_PAD: u8 = 0;
const OPTION_END: u8 = 255;

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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use dhcproto::{
        Decodable, Encodable,
        v4::{DhcpOption, Flags, Message, MessageType, OptionCode},
    };
    use expect_test::{Expect, expect};
    use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_oneof, proptest};

    use super::{ANSWER_BYTES_MAX, BOOTP_BYTES_MIN, Lease, Silence};

    const OWN: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 10);
    const OTHER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 11);
    const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];

    fn lease() -> Lease {
        Lease {
            address: OWN,
            mask: Ipv4Addr::new(255, 255, 240, 0),
            router: Ipv4Addr::new(172, 31, 0, 1),
            dns: Ipv4Addr::new(172, 31, 0, 2),
            mac: MAC,
            hostname: "ip-172-31-0-10".into(),
            domain: "ec2.internal".into(),
            mtu: 1500,
        }
    }

    fn question(kind: MessageType, ciaddr: Ipv4Addr, options: &[DhcpOption]) -> Message {
        let mut question = Message::new_with_id(7, ciaddr, NONE, NONE, NONE, &MAC);
        question.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            question.opts_mut().insert(option.clone());
        }
        question
    }

    fn check(question: &Message, expected: &Expect) {
        let told = match lease().answer(&question.to_vec().unwrap()) {
            Err(silence) => format!("{silence:?}"),
            Ok(answer) => {
                let message = Message::from_bytes(&answer.bytes).unwrap();
                let mut options: Vec<_> =
                    message.opts().iter().map(|(_, option)| format!("{option:?}")).collect();
                options.sort();
                format!("to {} yiaddr {}\n{}", answer.to, message.yiaddr(), options.join("\n"))
            }
        };
        expected.assert_eq(&told);
    }

    #[test]
    fn who_asks_is_told() {
        let whole = expect![[r#"
            to 172.31.0.10:68 yiaddr 172.31.0.10
            AddressLeaseTime(3600)
            DomainName("ec2.internal")
            DomainNameServer([172.31.0.2])
            Hostname("ip-172-31-0-10")
            InterfaceMtu(1500)
            MessageType(Ack)
            Rebinding(3150)
            Renewal(1800)
            Router([172.31.0.1])
            ServerIdentifier(172.31.0.1)
            SubnetMask(255.255.240.0)"#]];
        let wanted = DhcpOption::RequestedIpAddress(OWN);
        let selected = DhcpOption::ServerIdentifier(Ipv4Addr::new(172, 31, 0, 1));
        // Selecting, after a reboot, and renewing.
        check(&question(MessageType::Request, NONE, &[wanted.clone(), selected]), &whole);
        check(&question(MessageType::Request, NONE, &[wanted]), &whole);
        check(&question(MessageType::Request, OWN, &[]), &whole);
        check(
            &question(MessageType::Inform, OWN, &[DhcpOption::ClientIdentifier(vec![1, 2])]),
            &expect![[r#"
                to 172.31.0.10:68 yiaddr 0.0.0.0
                ClientIdentifier([1, 2])
                DomainName("ec2.internal")
                DomainNameServer([172.31.0.2])
                Hostname("ip-172-31-0-10")
                InterfaceMtu(1500)
                MessageType(Ack)
                Router([172.31.0.1])
                ServerIdentifier(172.31.0.1)
                SubnetMask(255.255.240.0)"#]],
        );
    }

    #[test]
    fn another_address_is_not_to_be_had() {
        let nak = expect![[r#"
            to 255.255.255.255:68 yiaddr 0.0.0.0
            MessageType(Nak)
            ServerIdentifier(172.31.0.1)"#]];
        check(&question(MessageType::Request, NONE, &[DhcpOption::RequestedIpAddress(OTHER)]), &nak);
        check(&question(MessageType::Request, OTHER, &[]), &nak);
        check(&question(MessageType::Request, NONE, &[]), &nak);
    }

    #[test]
    fn who_is_not_meant_is_silent() {
        let unasked = expect!["Unasked"];
        check(&question(MessageType::Request, NONE, &[DhcpOption::ServerIdentifier(OTHER)]), &unasked);
        for kind in [MessageType::Release, MessageType::Decline, MessageType::Offer, MessageType::Unknown(99)]
        {
            check(&question(kind, OWN, &[]), &unasked);
        }
        let mut relayed = question(MessageType::Discover, NONE, &[]);
        check(relayed.clone().set_chaddr(&[2, 0, 0, 0, 0, 11]), &expect!["Foreign"]);
        check(relayed.set_giaddr(OTHER), &expect!["Foreign"]);
        let mut kindless = question(MessageType::Discover, NONE, &[]);
        kindless.opts_mut().remove(OptionCode::MessageType);
        check(&kindless, &expect!["Malformed"]);
    }

    #[test]
    fn an_option_of_wrong_length_is_not_looked_at() {
        for code in 1..=254 {
            for value in [&[][..], &[1], &[1, 2, 3], &[0xff; 255]] {
                let mut packet = question(MessageType::Discover, NONE, &[]).to_vec().unwrap();
                assert_eq!(packet.pop(), Some(255));
                packet.extend([code, u8::try_from(value.len()).unwrap()]);
                packet.extend(value);
                lease().answer(&packet).unwrap();
                packet.pop();
                assert_eq!(lease().answer(&packet), Err(Silence::Malformed));
            }
        }
    }

    #[test]
    fn a_hardware_address_of_impossible_length_is_malformed() {
        let mut packet = question(MessageType::Discover, NONE, &[]).to_vec().unwrap();
        for length in (0..=255).filter(|length| *length != 6) {
            packet[2] = length;
            assert_eq!(lease().answer(&packet), Err(Silence::Malformed), "{length}");
        }
    }

    /// A question with some of its bytes changed, or any bytes at all.
    fn packets() -> impl Strategy<Value = Vec<u8>> {
        let kinds =
            prop_oneof![Just(MessageType::Discover), Just(MessageType::Request), Just(MessageType::Inform)];
        let options = prop::collection::vec(any::<u8>(), 0..400);
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
        let changed =
            (kinds, any::<bool>(), options, changes).prop_map(|(kind, broadcast, options, changes)| {
                let mut question = question(kind, NONE, &[]);
                if broadcast {
                    question.set_flags(Flags::default().set_broadcast());
                }
                let mut packet = question.to_vec().unwrap();
                packet.pop();
                packet.extend(options);
                for (at, byte) in changes {
                    *at.get_mut(&mut packet[..]) = byte;
                }
                packet
            });
        prop_oneof![changed, prop::collection::vec(any::<u8>(), 0..1500)]
    }

    proptest! {
        #[test]
        fn any_packet_costs_one_small_answer(packet in packets()) {
            let widest = Lease { hostname: "h".repeat(63), domain: "d".repeat(100), ..lease() };
            if let Ok(answer) = widest.answer(&packet) {
                prop_assert!((BOOTP_BYTES_MIN..=ANSWER_BYTES_MAX).contains(&answer.bytes.len()));
                let message = Message::from_bytes(&answer.bytes).unwrap();
                prop_assert!([OWN, NONE].contains(&message.yiaddr()));
                prop_assert!([OWN, Ipv4Addr::BROADCAST].contains(answer.to.ip()));
            }
        }
    }
}
