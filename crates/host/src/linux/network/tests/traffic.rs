//! What goes through a network, and what does not.

#![allow(clippy::print_stderr, reason = "a test that does not run says so")]

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use dhcproto::{
    Decodable, Encodable,
    v4::{DhcpOption, Flags, Message, MessageType, OptionCode},
};
use expect_test::expect;
use socket2::{Domain, Protocol, Socket, Type};

use super::lab::{
    Computer, address, alone, config, interface_id, interface_plan, network_plan, run, shell, text,
};
use crate::{
    host::{InterfacePlan, NetworkPlan},
    linux::network::{Config, Error, Network, Outside, firewall},
};

/// A network with interfaces 10 and 11 plugged in and configured.
async fn two() -> (Network, Computer, Computer) {
    let network = Network::start(config()).await.unwrap();
    network.ensure_network(&network_plan()).await.unwrap();
    let ten = Computer::plug_configured(&network, 10).await;
    let eleven = Computer::plug_configured(&network, 11).await;
    (network, ten, eleven)
}

#[test]
fn host_and_instances_reach_each_other() {
    alone(async || {
        let (_network, ten, eleven) = two().await;
        for line in [
            "ping -c1 -W5 172.31.0.1",
            "ping -c1 -W5 172.31.0.2",
            "ping -c1 -W5 172.31.0.3",
            "ping -c1 -W5 172.31.0.11",
        ] {
            ten.run(line).await;
        }
        run("ping -c1 -W5 172.31.0.10 && ping -c1 -W5 172.31.0.11");

        // The instance sees the host as one of its network, and the other instance as itself.
        let listener = eleven.inside(|| TcpListener::bind("0.0.0.0:80").unwrap()).await;
        let to = SocketAddr::from((address(11), 80));
        let from_host = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        assert_eq!(listener.accept().unwrap().1.ip(), address(3));
        drop(from_host);
        let from_ten = ten.inside(move || TcpStream::connect_timeout(&to, PATIENCE).unwrap()).await;
        let (mut stream, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), address(10));
        // More than fits into a frame, so that segments and their checksums matter.
        let sent: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let writer = std::thread::spawn(move || {
            let mut from_ten = from_ten;
            from_ten.write_all(&sent).unwrap()
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert!(received == expected);
    });
}

#[test]
fn an_address_that_nobody_has_is_unreachable() {
    alone(async || {
        let (_network, ten, _eleven) = two().await;
        let from_host = shell("ping -c1 -W5 172.31.0.99");
        assert!(text(&from_host.stdout).contains("From 172.31.0.1"), "{from_host:?}");
        // Nobody answers ARP for it, and nobody for link-local addresses.
        for absent in ["172.31.0.99", "169.254.169.254"] {
            let line =
                format!("ip route replace {absent} dev eth0; ping -c1 -W9 {absent}; ip neigh show {absent}");
            let said = text(&ten.shell(&line).await.stdout);
            assert!(
                said.contains("From 172.31.0.10 icmp_seq=1 Destination Host Unreachable")
                    && said.contains("FAILED"),
                "{said}"
            );
        }
        // Nor does the router pass the latter on.
        let said =
            text(&ten.shell("ip route del 169.254.169.254; ping -c1 -W5 169.254.169.254").await.stdout);
        assert!(said.contains("From 172.31.0.1 icmp_seq=1 Destination Host Unreachable"), "{said}");
    });
}

#[test]
fn instances_reach_the_outside_as_the_host() {
    alone(async || {
        let (_network, ten, _eleven) = two().await;
        let world = Computer::outside().await;
        let listener = world.inside(|| TcpListener::bind("192.0.2.2:80").unwrap()).await;
        let to = SocketAddr::from(([192, 0, 2, 2], 80));
        ten.inside(move || TcpStream::connect_timeout(&to, PATIENCE).unwrap()).await;
        assert_eq!(listener.accept().unwrap().1.ip(), Ipv4Addr::new(192, 0, 2, 1));

        // The other way round there is no way, even for who knows one.
        let said = world.shell("ip route add 172.31.0.0/20 via 192.0.2.1; ping -c1 -W1 172.31.0.10").await;
        assert!(!said.status.success(), "{said:?}");
        let border = run("nft list chain ip ec2vmm-vpc-0123456789abcdef0 forward");
        assert!(border.contains("oifname \"vpc-6789abcdef0\" counter packets 1 "), "{border}");
        let seen = TcpListener::bind("192.0.2.1:81").unwrap();
        // Nor are instances let at the host's own services.
        let host = SocketAddr::from(([192, 0, 2, 1], 81));
        let refused = ten.inside(move || TcpStream::connect_timeout(&host, PATIENCE).unwrap_err()).await;
        // Told at once, whichever error a kernel makes of it.
        assert_ne!(refused.kind(), std::io::ErrorKind::TimedOut, "{refused}");
        drop(seen);
        ten.run("ping -c1 -W5 192.0.2.1").await;
    });
}

#[test]
fn a_closed_network_reaches_nothing_outside_and_an_open_one_the_host() {
    alone(async || {
        let network =
            Network::start(Config { outside: Outside::Closed, reach_host: true, ..config() }).await.unwrap();
        network.ensure_network(&network_plan()).await.unwrap();
        let ten = Computer::plug_configured(&network, 10).await;
        let world = Computer::outside().await;
        run("sysctl -qw net.ipv4.ip_forward=1");
        let _listener = world.inside(|| TcpListener::bind("192.0.2.2:80").unwrap()).await;
        let to = SocketAddr::from(([192, 0, 2, 2], 80));
        ten.inside(move || TcpStream::connect_timeout(&to, PATIENCE).unwrap_err()).await;
        let service = TcpListener::bind("192.0.2.1:81").unwrap();
        let host = SocketAddr::from(([192, 0, 2, 1], 81));
        ten.inside(move || TcpStream::connect_timeout(&host, PATIENCE).unwrap()).await;
        assert_eq!(service.accept().unwrap().1.ip(), address(10));
    });
}

#[test]
fn networks_do_not_see_each_other_and_leave_by_the_way_that_is_given() {
    alone(async || {
        let outside = Outside::Only("world".into());
        let network = Network::start(Config { outside, ..config() }).await.unwrap();
        network.ensure_network(&network_plan()).await.unwrap();
        let ten = Computer::plug_configured(&network, 10).await;
        let other = "vpc-00000000000000002".parse().unwrap();
        let base = Ipv4Addr::new(172, 30, 0, 0);
        network.ensure_network(&NetworkPlan { vpc: other, base, prefix: 16 }).await.unwrap();

        let world = Computer::outside().await;
        ten.run("ping -c1 -W5 192.0.2.2").await;
        run(
            "ip link add lan type veth peer name eth1 netns world && ip addr add 198.51.100.1/24 dev lan && ip link set lan up",
        );
        world.run("ip addr add 198.51.100.2/24 dev eth1 && ip link set eth1 up").await;
        run("ping -c1 -W5 198.51.100.2");
        let said = text(&ten.shell("ping -c1 -W5 198.51.100.2").await.stdout);
        assert!(said.contains("From 172.31.0.3 icmp_seq=1 Packet filtered"), "{said}");

        run("ping -c1 -W5 172.30.0.1");
        assert!(!ten.shell("ping -c1 -W1 172.30.0.1").await.status.success());
        // Each network's border drops it, and one of them is first.
        let borders = run("nft list ruleset");
        assert_eq!(borders.matches("counter packets 1 ").count(), 1, "{borders}");
    });
}

#[test]
fn a_host_that_forwards_nothing_is_noticed() {
    alone(async || {
        assert_eq!(firewall::forward_is_closed().await.unwrap(), None);
        run(
            "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
        );
        assert_eq!(firewall::forward_is_closed().await.unwrap().as_deref(), Some("ip filter FORWARD"));
    });
}

/// A DHCP client's socket: without an address, on `eth0`.
fn dhcp_socket() -> std::net::UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.bind_device(Some(b"eth0")).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)).into()).unwrap();
    socket.into()
}

fn ask(socket: &std::net::UdpSocket, kind: MessageType, wanted: Option<Ipv4Addr>) -> Message {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut question = Message::new_with_id(0x1234_5678, zero, zero, zero, zero, &interface_plan(10).mac);
    question.set_flags(Flags::default().set_broadcast());
    question.opts_mut().insert(DhcpOption::MessageType(kind));
    if let Some(wanted) = wanted {
        question.opts_mut().insert(DhcpOption::RequestedIpAddress(wanted));
    }
    socket.send_to(b"no DHCP at all", "255.255.255.255:67").unwrap();
    socket.send_to(&question.to_vec().unwrap(), "255.255.255.255:67").unwrap();
    let mut packet = [0; 1500];
    let (length, from) = socket.recv_from(&mut packet).unwrap();
    assert_eq!(from, SocketAddr::from((address(1), 67)));
    let answer = Message::from_bytes(&packet[..length]).unwrap();
    assert_eq!(answer.xid(), 0x1234_5678);
    answer
}

#[test]
fn an_interface_is_told_its_address() {
    alone(async || {
        let network = Network::start(config()).await.unwrap();
        network.ensure_network(&network_plan()).await.unwrap();
        let ten = Computer::plug(&network, 10).await;
        let answers = ten.inside(|| {
            let socket = dhcp_socket();
            [
                ask(&socket, MessageType::Discover, None),
                ask(&socket, MessageType::Request, Some(address(10))),
                ask(&socket, MessageType::Request, Some(address(11))),
            ]
        });
        let [offer, ack, nak] = answers.await;
        assert_eq!((offer.yiaddr(), offer.opts().msg_type()), (address(10), Some(MessageType::Offer)));
        assert_eq!((ack.yiaddr(), ack.opts().msg_type()), (address(10), Some(MessageType::Ack)));
        assert_eq!(ack.opts().get(OptionCode::Router), Some(&DhcpOption::Router(vec![address(1)])));
        assert_eq!(nak.opts().msg_type(), Some(MessageType::Nak));
        let counts = network.counts();
        assert_eq!((counts.dhcp_answered, counts.dhcp_dropped), (3, 3));

        // A client that others wrote, from the package busybox-static.
        if shell("busybox --list | grep -qx udhcpc").status.success() {
            let said = ten.shell("busybox udhcpc -i eth0 -n -q -f -s /bin/true 2>&1").await;
            assert!(text(&said.stdout).contains("lease of 172.31.0.10 obtained"), "{said:?}");
        } else {
            eprintln!("SKIPPED in part: there is no busybox with udhcpc");
        }
    });
}

#[test]
fn what_others_use_is_not_taken() {
    alone(async || {
        let network = Network::start(config()).await.unwrap();
        run("ip link add lan type veth && ip addr add 172.31.2.1/24 dev lan && ip link set lan up");
        let error = network.ensure_network(&network_plan()).await.unwrap_err();
        expect!["the range 172.31.0.0/20 overlaps 172.31.2.0/24, which the host reaches through lan"]
            .assert_eq(&error.to_string());
        expect!["give the network a range that is free, such as 172.16.0.0/20"]
            .assert_eq(&crate::Explained::hint(&error).unwrap());
        assert_eq!(network.inventory().await.unwrap(), (vec![], vec![]));
        run("ip link del lan");

        network.ensure_network(&network_plan()).await.unwrap();
        network.ensure_interface(&interface_plan(10)).await.unwrap();
        let error = network
            .ensure_interface(&InterfacePlan { id: interface_id(11), ..interface_plan(10) })
            .await
            .unwrap_err();
        expect![
            "172.31.0.10 is the address of eni-0000000000000010a, and cannot be that of eni-0000000000000010b"
        ]
        .assert_eq(&error.to_string());
        for reserved in [0, 1, 2, 3] {
            network.ensure_interface(&interface_plan(reserved)).await.unwrap_err();
        }
        for changed in [
            InterfacePlan { address: address(12), ..interface_plan(10) },
            InterfacePlan { vpc: "vpc-00000000000000002".parse().unwrap(), ..interface_plan(10) },
            InterfacePlan { mac: [1, 0, 0, 0, 0, 1], ..interface_plan(12) },
            InterfacePlan { hostname: "a.b".into(), ..interface_plan(12) },
        ] {
            let error = network.ensure_interface(&changed).await.unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        }
        assert_eq!(network.inventory().await.unwrap().1, [interface_id(10)]);
        let error = Network::start(config()).await.unwrap_err();
        expect![[r#"another process has the networks of this host (prefix "")"#]]
            .assert_eq(&error.to_string());
        // Another prefix is another's.
        let other = Network::start(Config { prefix: "ci-".into(), ..config() }).await.unwrap();
        assert_eq!(other.inventory().await.unwrap(), (vec![], vec![]));
    });
}

const PATIENCE: Duration = Duration::from_secs(20);
