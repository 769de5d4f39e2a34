//! Asking the servers that the host asks.
//!
//! Invariant: a question is over after [`PATIENCE`], whatever servers do, and only a server that was asked
//! is heard: each question has a port and an id of its own, which only the kernel's random numbers know.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout, timeout_at},
};

use super::zone::HEADER_BYTES;
use crate::linux::network::Upstream;

/// Those who are asked.
#[derive(Debug)]
pub(in crate::linux::network) struct Resolver {
    upstream: Upstream,
    /// What the host's file said, and when it was written.
    read: Mutex<Option<(SystemTime, Vec<SocketAddr>)>>,
}

impl Resolver {
    pub(in crate::linux::network) fn new(upstream: Upstream) -> Self {
        Self { upstream, read: Mutex::new(None) }
    }

    /// Asks, and gives the first answer that settles the question, else the last one, else none. `whole`:
    /// an answer that was cut is asked for again over TCP.
    pub(super) async fn ask(&self, question: &[u8], whole: bool) -> Option<Vec<u8>> {
        let until = Instant::now() + PATIENCE;
        let servers = self.servers();
        let mut unsettled = None;
        for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
            let asked = timeout_at(until, timeout(SERVER_PATIENCE, ask(*server, question, whole))).await;
            match asked {
                Err(_) => break,
                Ok(Ok(Ok(answer))) if settles(&answer) => return Some(answer),
                Ok(Ok(Ok(answer))) => unsettled = Some(answer),
                Ok(Ok(Err(error))) => tracing::debug!(%server, %error, "DNS server cannot be asked"),
                Ok(Err(_)) => tracing::debug!(%server, "DNS server does not answer"),
            }
        }
        unsettled
    }

    fn servers(&self) -> Vec<SocketAddr> {
        match &self.upstream {
            Upstream::Servers(servers) => servers.clone(),
            Upstream::HostFile(path) => self.servers_of_file(path),
        }
    }

    fn servers_of_file(&self, path: &Path) -> Vec<SocketAddr> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let written = std::fs::metadata(path).and_then(|file| file.modified()).ok();
        if let (Some((then, servers)), Some(now)) = (&*read, written)
            && *then == now
        {
            return servers.clone();
        }
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let servers = nameservers(&text);
                *read = written.map(|written| (written, servers.clone()));
                servers
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read the host's DNS servers");
                read.as_ref().map(|(_, servers)| servers.clone()).unwrap_or_default()
            }
        }
    }
}

/// resolv.conf(5): one that names no server means this host's own.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    let servers: Vec<_> = addresses.take(SERVERS_MAX).map(|address| SocketAddr::new(address, PORT)).collect();
    if servers.is_empty() { vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)] } else { servers }
}

async fn ask(server: SocketAddr, question: &[u8], whole: bool) -> std::io::Result<Vec<u8>> {
    let Some((theirs, rest)) = question.split_first_chunk::<2>() else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let ours = random_id()?;
    let asked = [ours.as_slice(), rest].concat();
    let mut answer = ask_datagram(server, &asked).await?;
    if whole && is_cut(&answer) {
        answer = ask_stream(server, &asked).await?;
    }
    if let Some(id) = answer.first_chunk_mut::<2>() {
        *id = *theirs;
    }
    Ok(answer)
}

async fn ask_datagram(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut answer).await?;
        let packet = answer.get(..length).unwrap_or_default();
        if answers(question, packet) {
            return Ok(packet.to_vec());
        }
    }
}

async fn ask_stream(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, question).await?;
    let answer = read_message(&mut stream).await?;
    if answers(question, &answer) { Ok(answer) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// RFC 1035, 4.2.2.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    stream.write_all(&[length.to_be_bytes().as_slice(), message].concat()).await
}

/// RFC 1035, 4.2.2.
pub(super) async fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// It has the question's id, is an answer, and repeats the question.
fn answers(question: &[u8], answer: &[u8]) -> bool {
    let same_id = question.get(..2) == answer.get(..2);
    let is_answer = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    // A server that could not read the question does not repeat it.
    let repeats = match (asked(question), asked(answer)) {
        (Some(asked), Some(repeated)) => asked.eq_ignore_ascii_case(repeated),
        (_, None) => answer.get(4..6) == Some(&[0, 0]) && answer.len() >= HEADER_BYTES,
        (None, _) => false,
    };
    same_id && is_answer && repeats
}

/// The one question of a packet: name, type and class.
fn asked(packet: &[u8]) -> Option<&[u8]> {
    if packet.get(4..6)? != [0, 1] {
        return None;
    }
    let question = packet.get(HEADER_BYTES..)?;
    let mut at = 0;
    loop {
        match usize::from(*question.get(at)?) {
            0 => return question.get(..at + 5),
            length @ 1..=63 => at += length + 1,
            // Nothing stands before a question that it could point at.
            _ => return None,
        }
    }
}

/// Another server may know better than one that failed (2) or refused (5).
fn settles(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| !matches!(flags & 0x0f, 2 | 5))
}

fn is_cut(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

fn random_id() -> std::io::Result<[u8; 2]> {
    let mut id = [0; 2];
    rustix::rand::getrandom(id.as_mut_slice(), rustix::rand::GetRandomFlags::empty())?;
    Ok(id)
}

const PORT: u16 = 53;
const PATIENCE: Duration = Duration::from_secs(5);
const SERVER_PATIENCE: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 2;
/// resolv.conf(5) knows three.
const SERVERS_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert, proptest};

    use super::{answers, asked, nameservers};

    #[test]
    fn the_hosts_file() {
        let servers = nameservers(
            "# nameserver 1.1.1.1\nnameserver 10.0.0.2\nsearch a\nnameserver ::1\nnameserver x\n",
        );
        assert_eq!(servers, ["10.0.0.2:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        assert_eq!(nameservers(""), ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(nameservers(&"nameserver 1.1.1.1\n".repeat(9)).len(), 3);
    }

    const QUESTION: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01";

    #[test]
    fn only_the_answer_is_one() {
        let mut answer = QUESTION.to_vec();
        assert!(!answers(QUESTION, &answer));
        answer[2] |= 0x80;
        assert!(answers(QUESTION, &answer));
        answer[13] = b'E';
        assert!(answers(QUESTION, &answer), "case does not matter");
        answer[14] = b'y';
        assert!(!answers(QUESTION, &answer));
        let mut other = QUESTION.to_vec();
        other[2] |= 0x80;
        other[0] = 0;
        assert!(!answers(QUESTION, &other));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(packet in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Some(question) = asked(&packet) {
                prop_assert!(question.len() >= 5);
            }
            answers(QUESTION, &packet);
        }
    }
}
