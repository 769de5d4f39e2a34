//! What instances learn from DNS.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};

use super::lab::{Computer, address, alone, config, interface_plan, network_plan};
use crate::linux::network::{Config, Network, Upstream};

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn told(answer: &[u8]) -> String {
    let answer = Message::from_vec(answer).unwrap();
    let records: Vec<_> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    format!("{} {}", answer.metadata.response_code, records.join(" "))
}

/// Asks over UDP.
fn ask(server: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(packet, server).unwrap();
    let mut answer = [0; 4096];
    let (length, from) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(from, server);
    answer[..length].to_vec()
}

/// Asks over TCP.
fn ask_stream(server: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    send(&mut stream, packet);
    receive(&mut stream)
}

fn send(stream: &mut TcpStream, packet: &[u8]) {
    let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, packet].concat()).unwrap();
}

fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut packet = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut packet).unwrap();
    packet
}

/// A server that knows every name: by UDP only that there is more, by TCP all of it. What it is sent that
/// is forged comes first.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(server).unwrap();
    let reply = |packet: &[u8], octet: u8, cut: bool| {
        let question = Message::from_vec(packet).unwrap();
        let mut reply = Message::response(question.metadata.id, OpCode::Query);
        reply.metadata.truncation = cut;
        if !cut {
            let data = RData::A(rdata::A(Ipv4Addr::new(198, 51, 100, octet)));
            reply.add_answer(Record::from_rdata(question.queries[0].name.clone(), 1, data));
        }
        reply.add_queries(question.queries);
        reply
    };
    std::thread::spawn(move || {
        let mut packet = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut packet).unwrap();
            let name = Message::from_vec(&packet[..length]).unwrap().queries[0].name.to_string();
            let cut = name.starts_with("long");
            let mut forged = reply(&packet[..length], 66, false);
            forged.metadata.id ^= 1;
            socket.send_to(&forged.to_vec().unwrap(), from).unwrap();
            socket.send_to(&reply(&packet[..length], 1, cut).to_vec().unwrap(), from).unwrap();
        }
    });
    std::thread::spawn(move || {
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let packet = receive(&mut stream);
            send(&mut stream, &reply(&packet, 2, false).to_vec().unwrap());
        }
    });
    server
}

#[test]
fn instances_know_each_other_and_the_world_by_name() {
    alone(async || {
        // The first of the host's servers never answers.
        let silent = UdpSocket::bind("127.0.0.2:0").unwrap();
        let servers = vec![silent.local_addr().unwrap(), upstream()];
        let network =
            Network::start(Config { upstream: Upstream::Servers(servers), ..config() }).await.unwrap();
        network.ensure_network(&network_plan()).await.unwrap();
        let ten = Computer::plug_configured(&network, 10).await;
        network.ensure_interface(&interface_plan(11)).await.unwrap();

        let server = SocketAddr::from((address(2), 53));
        let answers = ten
            .inside(move || {
                let own = [
                    ("ip-172-31-0-11.ec2.internal.", RecordType::A),
                    ("IP-172-31-0-11.EC2.internal.", RecordType::A),
                    ("ip-172-31-0-11.", RecordType::A),
                    ("ip-172-31-0-11.ec2.internal.", RecordType::AAAA),
                    ("11.0.31.172.in-addr.arpa.", RecordType::PTR),
                    ("12.0.31.172.in-addr.arpa.", RecordType::PTR),
                    ("ip-172-31-0-12.ec2.internal.", RecordType::A),
                ];
                let mut answers: Vec<_> =
                    own.iter().map(|(name, kind)| told(&ask(server, &question(name, *kind)))).collect();
                let short = question("short.example.com.", RecordType::A);
                let long = question("long.example.com.", RecordType::A);
                answers.push(told(&ask(server, &short)));
                let cut = ask(server, &long);
                assert!(Message::from_vec(&cut).unwrap().metadata.truncation);
                assert_eq!(cut[..2], long[..2]);
                answers.push(told(&ask_stream(server, &short)));
                answers.push(told(&ask_stream(server, &long)));
                answers
            })
            .await;
        let expected = [
            "No Error 172.31.0.11",
            "No Error 172.31.0.11",
            "No Error 172.31.0.11",
            "No Error ",
            "No Error ip-172-31-0-11.ec2.internal.",
            "Non-Existent Domain ",
            "Non-Existent Domain ",
            "No Error 198.51.100.1",
            "No Error 198.51.100.1",
            "No Error 198.51.100.2",
        ];
        assert_eq!(answers, expected);

        // Who has left has no name any more.
        network.remove_interface(&interface_plan(11).id).await.unwrap();
        let gone =
            ten.inside(move || ask(server, &question("ip-172-31-0-11.ec2.internal.", RecordType::A))).await;
        assert_eq!(Message::from_vec(&gone).unwrap().metadata.response_code, ResponseCode::NXDomain);
        let counts = network.counts();
        assert_eq!((counts.dns_answered, counts.dns_forwarded, counts.dns_dropped), (8, 4, 0));
    });
}

#[test]
fn only_who_belongs_here_is_answered() {
    alone(async || {
        let network = Network::start(config()).await.unwrap();
        network.ensure_network(&network_plan()).await.unwrap();
        let server = SocketAddr::from((address(2), 53));
        // The host is, as base + 3. Nobody knows other names: there is no upstream.
        let other =
            tokio::task::spawn_blocking(move || ask(server, &question("example.com.", RecordType::A)));
        assert_eq!(told(&other.await.unwrap()), "Server Failure ");
        // By any other address it is not.
        tokio::task::spawn_blocking(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let _ = socket.send_to(&question("example.com.", RecordType::A), server);
            super::lab::run("ip addr add 192.0.2.1/32 dev lo");
            let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
            socket.send_to(&question("example.com.", RecordType::A), server).unwrap();
            // Answered after what came before it.
            ask(server, &question("example.com.", RecordType::A));
        })
        .await
        .unwrap();
        let counts = network.counts();
        assert_eq!((counts.dns_dropped, counts.dns_failed), (1, 2));
    });
}

const PATIENCE: Duration = Duration::from_secs(20);
