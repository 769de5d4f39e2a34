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
            return answer(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
        };
        if question.metadata.op_code != OpCode::Query {
            return answer(Message::error_msg(id, question.metadata.op_code, ResponseCode::NotImp));
        }
        let [query] = question.queries.as_slice() else {
            return answer(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
        };
        if query.query_class != DNSClass::IN {
            return Verdict::Forward;
        }
        match self.look_up(query) {
            Some(Found::Record(record)) => answer(self.reply(&question, ResponseCode::NoError, Some(record))),
            Some(Found::NoRecord) => answer(self.reply(&question, ResponseCode::NoError, None)),
            Some(Found::NoName) => answer(self.reply(&question, ResponseCode::NXDomain, None)),
            None => Verdict::Forward,
        }
    }

    /// What is known of a name; nothing of a name that is not ours.
    fn look_up(&self, query: &Query) -> Option<Found> {
        let wanted = query.query_type;
        let mut name = query.name.to_lowercase();
        name.set_fqdn(true);
        if let Some(address) = address_of_reverse(&name) {
            if !self.range.contains(address) {
                return None;
            }
            return Some(match self.names.get(&address) {
                Some(host) if matches!(wanted, RecordType::PTR | RecordType::ANY) => {
                    Found::record(query, RData::PTR(rdata::PTR(host.clone())))
                }
                Some(_) => Found::NoRecord,
                None => Found::NoName,
            });
        }
        // A bare label is what somebody types who knows the machine.
        let is_bare = name.num_labels() == 1;
        let full = if is_bare { name.append_domain(&self.domain).ok()?.to_lowercase() } else { name };
        match self.addresses.get(&full) {
            Some(address) if matches!(wanted, RecordType::A | RecordType::ANY) => {
                Some(Found::record(query, RData::A(rdata::A(*address))))
            }
            Some(_) => Some(Found::NoRecord),
            None if is_bare => None,
            None if full == self.domain => Some(Found::NoRecord),
            None => self.domain.zone_of(&full).then_some(Found::NoName),
        }
    }

    fn reply(&self, question: &Message, code: ResponseCode, record: Option<Record>) -> Message {
        let mut reply = Message::response(question.metadata.id, OpCode::Query);
        reply.metadata.recursion_desired = question.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.authoritative = true;
        reply.metadata.response_code = code;
        reply.add_queries(question.queries.iter().cloned());
        match record {
            Some(record) => reply.add_answer(record),
            // RFC 2308: how long an absence may be remembered.
            None => {
                reply.add_authority(Record::from_rdata(self.domain.clone(), TTL_SECONDS, self.authority()))
            }
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

/// What is known of a name.
enum Found {
    Record(Record),
    /// There is the name, but nothing of the kind that was asked for.
    NoRecord,
    NoName,
}

impl Found {
    fn record(query: &Query, data: RData) -> Self {
        Self::Record(Record::from_rdata(query.name.clone(), TTL_SECONDS, data))
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

fn answer(message: Message) -> Verdict {
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
