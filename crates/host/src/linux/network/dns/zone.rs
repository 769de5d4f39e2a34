//! The names of a network's instances (RFC 1035): what is answered here, and what others are asked.
//!
//! Invariant: deciding keeps nothing and costs no more than reading the packet once.

use std::{collections::BTreeMap, net::Ipv4Addr};

use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata},
};

use crate::linux::network::range::Range;

/// The names of a network's instances.
#[derive(Debug)]
pub(in crate::linux::network) struct Zone {
    domain: Name,
    range: Range,
    addresses: BTreeMap<Name, Ipv4Addr>,
    names: BTreeMap<Ipv4Addr, Name>,
}

/// What becomes of a question.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// This is the answer.
    Answer(Vec<u8>),
    /// Others know.
    Forward,
    /// It is no question.
    Silence,
}

impl Zone {
    pub(in crate::linux::network) fn new(domain: Name, range: Range) -> Self {
        Self { domain, range, addresses: BTreeMap::new(), names: BTreeMap::new() }
    }

    /// Gives an address a name, in place of the one that it had.
    pub(in crate::linux::network) fn insert(&mut self, hostname: &Name, address: Ipv4Addr) {
        self.remove(address);
        // The domain is short enough for any label: see `Config`.
        if let Ok(name) = hostname.clone().append_domain(&self.domain) {
            let name = name.to_lowercase();
            self.addresses.insert(name.clone(), address);
            self.names.insert(address, name);
        }
    }

    pub(in crate::linux::network) fn remove(&mut self, address: Ipv4Addr) {
        if let Some(name) = self.names.remove(&address)
            && self.addresses.get(&name) == Some(&address)
        {
            self.addresses.remove(&name);
        }
    }

    /// Only the network's own instances and its host are answered.
    pub(super) fn serves(&self, asker: Ipv4Addr) -> bool {
        asker == self.range.host() || self.names.contains_key(&asker)
    }

    /// Decides what becomes of a packet.
    pub(super) fn decide(&self, packet: &[u8]) -> Verdict {
        let Some(id) = id_of_question(packet) else { return Verdict::Silence };
        let Ok(question) = Message::from_vec(packet) else {
            return answer(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
        };
        if question.metadata.op_code != OpCode::Query {
            return answer(&Message::error_msg(id, question.metadata.op_code, ResponseCode::NotImp));
        }
        let [query] = question.queries.as_slice() else {
            return answer(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
        };
        if query.query_class != DNSClass::IN {
            return Verdict::Forward;
        }
        match self.look_up(query) {
            Some((code, data)) => answer(&self.reply(&question, code, data)),
            None => Verdict::Forward,
        }
    }

    /// What is known of a name; nothing of a name that is not ours.
    fn look_up(&self, query: &Query) -> Option<(ResponseCode, Option<RData>)> {
        let (no_record, no_name) = ((ResponseCode::NoError, None), (ResponseCode::NXDomain, None));
        let found = |data| (ResponseCode::NoError, Some(data));
        let wanted = query.query_type;
        let mut name = query.name.to_lowercase();
        name.set_fqdn(true);
        if let Some(address) = address_of_reverse(&name) {
            if !self.range.contains(address) {
                return None;
            }
            return Some(match self.names.get(&address) {
                Some(host) if matches!(wanted, RecordType::PTR | RecordType::ANY) => {
                    found(RData::PTR(rdata::PTR(host.clone())))
                }
                Some(_) => no_record,
                None => no_name,
            });
        }
        // A bare label is what somebody types who knows the machine.
        let is_bare = name.num_labels() == 1;
        let full = if is_bare { name.append_domain(&self.domain).ok()?.to_lowercase() } else { name };
        match self.addresses.get(&full) {
            Some(address) if matches!(wanted, RecordType::A | RecordType::ANY) => {
                Some(found(RData::A(rdata::A(*address))))
            }
            Some(_) => Some(no_record),
            None if is_bare => None,
            None if full == self.domain => Some(no_record),
            None => self.domain.zone_of(&full).then_some(no_name),
        }
    }

    fn reply(&self, question: &Message, code: ResponseCode, data: Option<RData>) -> Message {
        let mut reply = Message::response(question.metadata.id, OpCode::Query);
        reply.metadata.recursion_desired = question.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.authoritative = true;
        reply.metadata.response_code = code;
        reply.add_queries(question.queries.iter().cloned());
        match (data, question.queries.first()) {
            (Some(data), Some(query)) => {
                reply.add_answer(Record::from_rdata(query.name.clone(), TTL_SECONDS, data))
            }
            // RFC 2308: how long an absence may be remembered.
            _ => reply.add_authority(Record::from_rdata(self.domain.clone(), TTL_SECONDS, self.authority())),
        };
        if question.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX);
            reply.set_edns(edns);
        }
        reply
    }

    fn authority(&self) -> RData {
        let server = self.domain.clone();
        RData::SOA(rdata::SOA::new(server.clone(), server, 1, 3600, 600, 86400, TTL_SECONDS))
    }
}

/// RFC 1035, 3.5: `10.0.31.172.in-addr.arpa` asks for the name of 172.31.0.10.
fn address_of_reverse(name: &Name) -> Option<Ipv4Addr> {
    let mut labels = name.iter();
    let mut octets = [0_u8; 4];
    for octet in octets.iter_mut().rev() {
        *octet = std::str::from_utf8(labels.next()?).ok()?.parse().ok()?;
    }
    let is_reverse =
        labels.next() == Some(b"in-addr") && labels.next() == Some(b"arpa") && labels.next().is_none();
    is_reverse.then(|| octets.into())
}

/// Tells the asker that nobody knew.
pub(super) fn refusal(packet: &[u8]) -> Option<Vec<u8>> {
    let question = Message::from_vec(packet).ok()?;
    let mut reply = Message::error_msg(question.metadata.id, OpCode::Query, ResponseCode::ServFail);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(question.queries);
    reply.to_vec().ok()
}

fn answer(message: &Message) -> Verdict {
    message.to_vec().map_or(Verdict::Silence, Verdict::Answer)
}

/// The id, when the header is that of a question.
fn id_of_question(packet: &[u8]) -> Option<u16> {
    let [high, low, flags, ..] = packet else { return None };
    let is_question = packet.len() >= HEADER_BYTES && flags & 0x80 == 0;
    is_question.then(|| u16::from_be_bytes([*high, *low]))
}

/// RFC 1035, 4.1.1.
pub(super) const HEADER_BYTES: usize = 12;

/// What EC2's servers tell for its own names.
const TTL_SECONDS: u32 = 60;

/// What we take and send in one datagram.
pub(super) const UDP_BYTES_MAX: u16 = 4096;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::{
        op::{Edns, Message, Query},
        rr::{DNSClass, Name, RecordType},
    };
    use proptest::prelude::{any, prop, prop_assert, proptest};

    use super::{Range, UDP_BYTES_MAX, Verdict, Zone};

    const TEN: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 10);

    fn zone() -> Zone {
        let range = Range::new(Ipv4Addr::new(172, 31, 0, 0), 20).unwrap();
        let mut zone = Zone::new(Name::from_ascii("ec2.internal.").unwrap(), range);
        zone.insert(&Name::from_ascii("ip-172-31-0-10").unwrap(), TEN);
        zone
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn told(zone: &Zone, question: &Message) -> String {
        match zone.decide(&question.to_vec().unwrap()) {
            Verdict::Answer(answer) => {
                let answer = Message::from_vec(&answer).unwrap();
                assert_eq!(answer.metadata.id, question.metadata.id);
                let records: Vec<_> = answer.answers.iter().map(|record| record.data.to_string()).collect();
                format!("{}: {}", answer.metadata.response_code, records.join(" "))
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn what_is_ours_and_what_is_not() {
        let zone = zone();
        for (name, kind, expected) in [
            ("ip-172-31-0-10.ec2.internal.", RecordType::A, "No Error: 172.31.0.10"),
            ("ip-172-31-0-10.ec2.internal.", RecordType::ANY, "No Error: 172.31.0.10"),
            ("ip-172-31-0-10.ec2.internal.", RecordType::MX, "No Error: "),
            ("ec2.internal.", RecordType::SOA, "No Error: "),
            ("a.b.ec2.internal.", RecordType::A, "Non-Existent Domain: "),
            ("notec2.internal.", RecordType::A, "Forward"),
            ("internal.", RecordType::A, "Forward"),
            (".", RecordType::NS, "Forward"),
            ("10.0.31.172.in-addr.arpa.", RecordType::PTR, "No Error: ip-172-31-0-10.ec2.internal."),
            ("10.0.31.172.in-addr.arpa.", RecordType::A, "No Error: "),
            ("11.0.31.172.in-addr.arpa.", RecordType::PTR, "Non-Existent Domain: "),
            ("31.172.in-addr.arpa.", RecordType::NS, "Forward"),
            ("10.16.31.172.in-addr.arpa.", RecordType::PTR, "Forward"),
            ("a.10.0.31.172.in-addr.arpa.", RecordType::PTR, "Forward"),
        ] {
            assert_eq!(told(&zone, &question(name, kind)), expected, "{name} {kind}");
        }
        let mut chaos = question("version.bind.", RecordType::TXT);
        chaos.queries[0].query_class = DNSClass::CH;
        assert_eq!(told(&zone, &chaos), "Forward");
    }

    #[test]
    fn what_is_no_question() {
        let zone = zone();
        let mut none = Message::query();
        assert_eq!(told(&zone, &none), "Form Error: ");
        none.add_queries(question("a.", RecordType::A).queries);
        none.add_queries(question("b.", RecordType::A).queries);
        assert_eq!(told(&zone, &none), "Form Error: ");
        let mut update = question("a.", RecordType::A);
        update.metadata.op_code = hickory_proto::op::OpCode::Update;
        assert_eq!(told(&zone, &update), "Not Implemented: ");
        let answer = question("a.", RecordType::A).into_response();
        assert_eq!(told(&zone, &answer), "Silence");
        assert_eq!(zone.decide(b""), Verdict::Silence);
    }

    #[test]
    fn names_come_and_go() {
        let mut zone = zone();
        let web = Name::from_ascii("web").unwrap();
        zone.insert(&web, TEN);
        assert_eq!(told(&zone, &question("web.", RecordType::A)), "No Error: 172.31.0.10");
        assert_eq!(told(&zone, &question("ip-172-31-0-10.", RecordType::A)), "Forward");
        // Of two with one name the later is meant, whichever leaves first.
        let eleven = Ipv4Addr::new(172, 31, 0, 11);
        zone.insert(&web, eleven);
        zone.remove(TEN);
        assert_eq!(told(&zone, &question("web.ec2.internal.", RecordType::A)), "No Error: 172.31.0.11");
        assert!(zone.serves(eleven) && !zone.serves(TEN) && !zone.serves(Ipv4Addr::new(172, 31, 0, 1)));
    }

    proptest! {
        #[test]
        fn any_packet_is_survived(packet in prop::collection::vec(any::<u8>(), 0..600), flags in 0_u8..8) {
            let mut packet = packet;
            if packet.len() > 12 {
                // More often a question than chance would have it.
                packet[2] &= flags;
                packet[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
            }
            if let Verdict::Answer(answer) = zone().decide(&packet) {
                prop_assert!(answer.len() <= usize::from(UDP_BYTES_MAX) && answer[..2] == packet[..2]);
            }
        }

        #[test]
        fn a_changed_question_is_survived(changes in prop::collection::vec((0_usize..60, any::<u8>()), 0..8)) {
            let mut message = question("ip-172-31-0-10.ec2.internal.", RecordType::A);
            message.set_edns(Edns::new());
            let mut packet = message.to_vec().unwrap();
            for (at, byte) in changes {
                if let Some(changed) = packet.get_mut(at) {
                    *changed = byte;
                }
            }
            if let Verdict::Answer(answer) = zone().decide(&packet) {
                prop_assert!(answer.len() <= 512 && Message::from_vec(&answer).is_ok());
            }
        }
    }
}
