//! DNS for one network, at its range's third address.
//!
//! Invariant: only the network's own instances and its host are answered; what one of them can have under
//! way is bounded, and so is what all can.

pub(super) mod upstream;
pub(super) mod zone;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::Ordering},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};

use self::{
    upstream::{Resolver, read_message, write_message},
    zone::{UDP_BYTES_MAX, Verdict, Zone, refusal},
};
use super::{Error, counters::Counters, namespace::Namespace};

/// What one network's DNS knows and has under way.
#[derive(Debug)]
pub(super) struct Dns {
    pub(super) zone: RwLock<Zone>,
    resolver: Arc<Resolver>,
    counters: Arc<Counters>,
    under_way: Mutex<BTreeMap<Ipv4Addr, usize>>,
}

/// The sockets in a network's namespace.
#[derive(Debug)]
pub(super) struct Sockets {
    datagrams: std::net::UdpSocket,
    streams: std::net::TcpListener,
}

impl Sockets {
    pub(super) async fn bind(namespace: &Namespace, address: Ipv4Addr) -> Result<Self, Error> {
        let bind = move || {
            let datagrams = std::net::UdpSocket::bind((address, PORT))?;
            let streams = std::net::TcpListener::bind((address, PORT))?;
            datagrams.set_nonblocking(true)?;
            streams.set_nonblocking(true)?;
            Ok(Self { datagrams, streams })
        };
        let what = format!("listen on {address} port {PORT} in the network's namespace");
        namespace.enter(bind).await?.map_err(|source: io::Error| Error::System { what, source })
    }
}

impl Dns {
    pub(super) fn new(zone: Zone, resolver: Arc<Resolver>, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self { zone: RwLock::new(zone), resolver, counters, under_way: Mutex::default() })
    }

    /// Answers until the tasks are dropped.
    pub(super) fn serve(self: &Arc<Self>, sockets: Sockets, tasks: &mut JoinSet<()>) -> Result<(), Error> {
        let failed = |source| Error::System { what: "listen for DNS".into(), source };
        let datagrams = UdpSocket::from_std(sockets.datagrams).map_err(failed)?;
        let streams = TcpListener::from_std(sockets.streams).map_err(failed)?;
        tasks.spawn(Arc::clone(self).serve_datagrams(Arc::new(datagrams)));
        tasks.spawn(Arc::clone(self).serve_streams(streams));
        Ok(())
    }

    async fn serve_datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut asked = JoinSet::new();
        let mut buffer = [0; UDP_BYTES_MAX as usize];
        loop {
            while asked.try_join_next().is_some() {}
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An answer could not be delivered, and the kernel tells us here.
                Err(error) => {
                    tracing::debug!(%error, "DNS datagram");
                    continue;
                }
            };
            let Some(turn) = self.turn_of(from, DATAGRAM_WEIGHT) else { continue };
            let packet = buffer.get(..length).unwrap_or_default();
            match self.decide(packet) {
                Verdict::Silence => self.dropped(),
                Verdict::Answer(answer) => deliver(&socket, &answer, from),
                Verdict::Forward => {
                    let (dns, socket, packet) = (Arc::clone(&self), Arc::clone(&socket), packet.to_vec());
                    asked.spawn(async move {
                        let _turn = turn;
                        if let Some(answer) = dns.forward(&packet, false).await {
                            deliver(&socket, &answer, from);
                        }
                    });
                }
            }
        }
    }

    async fn serve_streams(self: Arc<Self>, listener: TcpListener) {
        let mut open = JoinSet::new();
        loop {
            while open.try_join_next().is_some() {}
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "DNS connection");
                    // Out of descriptors, most likely: it would be refused again at once.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(turn) = self.turn_of(from, STREAM_WEIGHT) else { continue };
            let dns = Arc::clone(&self);
            open.spawn(async move {
                let _turn = turn;
                if let Err(error) = dns.serve_stream(stream).await {
                    tracing::debug!(%error, %from, "DNS connection");
                }
            });
        }
    }

    async fn serve_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        for _ in 0..STREAM_QUESTIONS_MAX {
            let question = match timeout(STREAM_PATIENCE, read_message(&mut stream)).await {
                Ok(Ok(question)) => question,
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(()),
            };
            let answer = match self.decide(&question) {
                Verdict::Silence => {
                    self.dropped();
                    return Ok(());
                }
                Verdict::Answer(answer) => answer,
                Verdict::Forward => match self.forward(&question, true).await {
                    Some(answer) => answer,
                    None => return Ok(()),
                },
            };
            timeout(STREAM_PATIENCE, write_message(&mut stream, &answer)).await??;
        }
        Ok(())
    }

    fn decide(&self, packet: &[u8]) -> Verdict {
        let verdict = self.zone.read().unwrap_or_else(PoisonError::into_inner).decide(packet);
        if matches!(verdict, Verdict::Answer(_)) {
            self.counters.dns_answered.fetch_add(1, Ordering::Relaxed);
        }
        verdict
    }

    /// Asks others, and says so when nobody knew.
    async fn forward(&self, question: &[u8], whole: bool) -> Option<Vec<u8>> {
        self.counters.dns_forwarded.fetch_add(1, Ordering::Relaxed);
        match self.resolver.ask(question, whole).await {
            Some(answer) => Some(answer),
            None => {
                self.counters.dns_failed.fetch_add(1, Ordering::Relaxed);
                refusal(question)
            }
        }
    }

    fn dropped(&self) {
        self.counters.dns_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// A turn for somebody who may ask and has not too much under way.
    fn turn_of(self: &Arc<Self>, from: SocketAddr, weight: usize) -> Option<Turn> {
        let turn = self.take_turn(from, weight);
        if turn.is_none() {
            self.dropped();
        }
        turn
    }

    fn take_turn(self: &Arc<Self>, from: SocketAddr, weight: usize) -> Option<Turn> {
        let IpAddr::V4(asker) = from.ip() else { return None };
        if !self.zone.read().unwrap_or_else(PoisonError::into_inner).serves(asker) {
            return None;
        }
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = under_way.values().sum();
        let own = under_way.get(&asker).copied().unwrap_or_default();
        if all + weight > UNDER_WAY_MAX || own + weight > UNDER_WAY_OF_ONE_MAX {
            return None;
        }
        under_way.insert(asker, own + weight);
        Some(Turn { dns: Arc::clone(self), asker, weight })
    }
}

/// The right to have one question, or one connection, under way.
struct Turn {
    dns: Arc<Dns>,
    asker: Ipv4Addr,
    weight: usize,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut under_way = self.dns.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = under_way.get_mut(&self.asker) {
            *own = own.saturating_sub(self.weight);
            if *own == 0 {
                under_way.remove(&self.asker);
            }
        }
    }
}

/// Sends without waiting: who does not get an answer asks again.
fn deliver(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = socket.try_send_to(answer, to) {
        tracing::debug!(%error, %to, "DNS answer");
    }
}

const PORT: u16 = 53;

/// One asker can have 64 questions or 8 connections under way; 32 of such askers fill the house.
const UNDER_WAY_MAX: usize = 2048;
const UNDER_WAY_OF_ONE_MAX: usize = 64;
const DATAGRAM_WEIGHT: usize = 1;
const STREAM_WEIGHT: usize = 8;

const STREAM_PATIENCE: Duration = Duration::from_secs(10);
const STREAM_QUESTIONS_MAX: usize = 128;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
