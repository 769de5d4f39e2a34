//! What an instance sends that is not its to send.

use std::{
    fs::File,
    io::{Read, Write},
    net::Ipv4Addr,
    time::Duration,
};

use dhcproto::{
    Decodable, Encodable,
    v4::{DhcpOption, Message, MessageType},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::lab::{address, alone, config, interface_plan, network_plan, run};
use crate::linux::network::Network;

/// A machine without an operating system: what it sends is bytes.
struct Wire(File);

impl Wire {
    async fn plug(network: &Network, number: u8) -> Self {
        let plan = interface_plan(number);
        network.ensure_interface(&plan).await.unwrap();
        Self(network.open_tap(&plan.id, 1).await.unwrap().remove(0))
    }

    fn send(&mut self, frame: &[u8]) {
        self.0.write_all(&[&[0; HEADER_BYTES], frame].concat()).unwrap();
    }

    /// The next frame of this kind.
    fn receive(&mut self, kind: u16) -> Vec<u8> {
        let mut frame = [0; 2048];
        loop {
            let patience = Timespec::try_from(Duration::from_secs(20)).unwrap();
            let ready = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&patience)).unwrap();
            assert_eq!(ready, 1, "no frame came");
            let length = self.0.read(&mut frame).unwrap();
            let frame = &frame[HEADER_BYTES..length];
            if frame[12..14] == kind.to_be_bytes() {
                return frame.to_vec();
            }
        }
    }
}

fn mac(number: u8) -> [u8; 6] {
    interface_plan(number).mac
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

fn arp(operation: u8, from: ([u8; 6], Ipv4Addr), to: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &from.0, &from.1.octets(), &[0; 6], &to.octets()].concat()
}

/// An UDP packet without a checksum.
fn udp(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap();
    let mut head = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    head[2..4].copy_from_slice(&(length + 20).to_be_bytes());
    head[12..16].copy_from_slice(&from.octets());
    head[16..20].copy_from_slice(&to.octets());
    let sum: u32 = head.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    head[10..12].copy_from_slice(&(!u16::try_from(folded).unwrap()).to_be_bytes());
    let ports = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    [&head[..], &ports, &length.to_be_bytes(), &[0, 0], payload].concat()
}

const HEADER_BYTES: usize = 10;
const IP: u16 = 0x0800;
const ARP: u16 = 0x0806;
const EVERYONE: [u8; 6] = [0xff; 6];

#[test]
fn the_router_answers_arp_for_everyone_who_is_there() {
    alone(async || {
        let network = Network::start(config()).await.unwrap();
        network.ensure_network(&network_plan()).await.unwrap();
        let mut ten = Wire::plug(&network, 10).await;
        network.ensure_interface(&interface_plan(11)).await.unwrap();
        let mut router = None;
        for asked in [address(1), address(2), address(3), address(11), Ipv4Addr::new(192, 0, 2, 2)] {
            ten.send(&ethernet(EVERYONE, mac(10), ARP, &arp(1, (mac(10), address(10)), asked)));
            let answer = ten.receive(ARP);
            assert_eq!((answer[21], &answer[28..32]), (2, &asked.octets()[..]), "{asked}");
            // All are behind the router.
            assert_eq!(*router.get_or_insert(answer[22..28].to_vec()), answer[22..28]);
        }
        // Nobody has the own address, or one that was not given; the answer to the question after is next.
        for (sender, absent) in [(Ipv4Addr::UNSPECIFIED, 10), (address(10), 10), (address(10), 99)] {
            ten.send(&ethernet(EVERYONE, mac(10), ARP, &arp(1, (mac(10), sender), address(absent))));
            ten.send(&ethernet(EVERYONE, mac(10), ARP, &arp(1, (mac(10), address(10)), address(1))));
            assert_eq!(ten.receive(ARP)[28..32], address(1).octets(), "{absent}");
        }
    });
}

#[test]
fn a_client_without_an_address_is_answered_by_its_hardware_address() {
    alone(async || {
        let network = Network::start(config()).await.unwrap();
        network.ensure_network(&network_plan()).await.unwrap();
        let mut ten = Wire::plug(&network, 10).await;
        let zero = Ipv4Addr::UNSPECIFIED;
        let mut question = Message::new_with_id(7, zero, zero, zero, zero, &mac(10));
        question.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
        let packet = udp(zero, Ipv4Addr::BROADCAST, (68, 67), &question.to_vec().unwrap());
        ten.send(&ethernet(EVERYONE, mac(10), IP, &packet));
        let answer = ten.receive(IP);
        let (to, addresses, packet) = (&answer[..6], &answer[26..34], &answer[42..]);
        assert_eq!(
            (to, addresses),
            (&mac(10)[..], &[address(1).octets(), address(10).octets()].concat()[..])
        );
        assert_eq!(Message::from_bytes(packet).unwrap().yiaddr(), address(10));
    });
}

#[test]
fn forged_sources_are_dropped() {
    alone(async || {
        let network = Network::start(config()).await.unwrap();
        network.ensure_network(&network_plan()).await.unwrap();
        let mut ten = Wire::plug(&network, 10).await;
        let mut eleven = Wire::plug(&network, 11).await;
        ten.send(&ethernet(EVERYONE, mac(10), ARP, &arp(1, (mac(10), address(10)), address(1))));
        let router: [u8; 6] = ten.receive(ARP)[22..28].try_into().unwrap();
        let neighbours = || run("ip netns exec vpc-0123456789abcdef0 ip neigh | grep PERMANENT | sort");
        let before = neighbours();

        let honest = |byte| ethernet(router, mac(10), IP, &udp(address(10), address(11), (9, 9), &[byte]));
        let other = udp(address(12), address(11), (9, 9), &[0xee]);
        let own = udp(address(10), address(11), (9, 9), &[0xee]);
        let forged = [
            // Another's address, nobody's, the router's, the host's, the world's.
            ethernet(router, mac(10), IP, &other),
            ethernet(router, mac(10), IP, &udp(Ipv4Addr::UNSPECIFIED, address(11), (9, 9), &[0xee])),
            ethernet(router, mac(10), IP, &udp(address(1), address(11), (9, 9), &[0xee])),
            ethernet(router, mac(10), IP, &udp(address(3), address(11), (9, 9), &[0xee])),
            ethernet(router, mac(10), IP, &udp(Ipv4Addr::new(192, 0, 2, 2), address(11), (9, 9), &[0xee])),
            // Another's hardware address.
            ethernet(router, mac(12), IP, &own),
            ethernet(router, router, IP, &own),
            // DHCP is for who has no address, and to everyone.
            ethernet(router, mac(10), IP, &udp(Ipv4Addr::UNSPECIFIED, address(11), (68, 67), &[0xee])),
            ethernet(EVERYONE, mac(10), IP, &udp(address(12), Ipv4Addr::BROADCAST, (68, 67), &[0xee])),
            // Neither IPv4 nor ARP.
            ethernet(router, mac(10), 0x86dd, &[0x60; 60]),
            ethernet(router, mac(10), 0x88b5, &[0xee; 60]),
            // ARP that gives what is another's, by question and by answer.
            ethernet(EVERYONE, mac(10), ARP, &arp(1, (mac(10), address(11)), address(1))),
            ethernet(router, mac(10), ARP, &arp(2, (mac(10), address(11)), address(1))),
            ethernet(EVERYONE, mac(10), ARP, &arp(1, (mac(10), address(1)), address(11))),
            ethernet(EVERYONE, mac(10), ARP, &arp(1, (mac(11), address(10)), address(1))),
        ];
        for (number, frame) in (1..).zip(&forged) {
            ten.send(frame);
            ten.send(&honest(number));
            let received = eleven.receive(IP);
            assert_eq!((received[26..30].to_vec(), received[42]), (address(10).octets().to_vec(), number));
        }
        assert_eq!(neighbours(), before);
        let guard =
            run("ip netns exec vpc-0123456789abcdef0 nft list chain netdev ec2vmm eni-0000000000000010a");
        let dropped: usize = guard
            .lines()
            .filter_map(|line| line.split("packets ").nth(1)?.split(' ').next()?.parse::<usize>().ok())
            .sum();
        assert_eq!(dropped, forged.len(), "{guard}");
    });
}
