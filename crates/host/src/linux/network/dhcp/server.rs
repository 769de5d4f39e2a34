//! The socket of one interface's DHCP, in its network's namespace.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::UdpSocket,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{Lease, SERVER_PORT};
use crate::linux::network::{Error, counters::Counters, namespace::Namespace};

/// Answers one interface while it lives.
#[derive(Debug)]
pub(in crate::linux::network) struct Server {
    lease: Lease,
    task: JoinHandle<()>,
}

impl Server {
    pub(in crate::linux::network) async fn start(
        namespace: &Namespace,
        tap: &str,
        lease: Lease,
        counters: Arc<Counters>,
    ) -> Result<Self, Error> {
        let what = format!("listen for DHCP on link {tap}");
        let failed = |source| Error::System { what: what.clone(), source };
        let tap = tap.to_owned();
        let socket = namespace.enter(move || bind(&tap)).await?.map_err(failed)?;
        let socket = UdpSocket::from_std(socket).map_err(failed)?;
        let task = tokio::spawn(serve(socket, lease.clone(), counters));
        Ok(Self { lease, task })
    }

    /// It tells this, and still does.
    pub(in crate::linux::network) fn tells(&self, lease: &Lease) -> bool {
        self.lease == *lease && !self.task.is_finished()
    }

    /// Ends, and returns when its socket is closed.
    pub(in crate::linux::network) async fn stop(mut self) {
        self.task.abort();
        // Cancelled, as it was told.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Bound to the link first, so that each link's socket has the port for itself.
fn bind(tap: &str) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(tap.as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT).into())?;
    Ok(socket.into())
}

async fn serve(socket: UdpSocket, lease: Lease, counters: Arc<Counters>) {
    let mut budget = Budget::new(Instant::now());
    let mut packet = [0; PACKET_BYTES_MAX];
    loop {
        sleep_until(budget.next(Instant::now())).await;
        let length = match socket.recv(&mut packet).await {
            Ok(length) => length,
            Err(error) => {
                tracing::debug!(%error, address = %lease.address, "DHCP packet");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        match lease.answer(packet.get(..length).unwrap_or_default()) {
            Ok(answer) => {
                counters.dhcp_answered.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = socket.send_to(&answer.bytes, answer.to).await {
                    tracing::debug!(%error, address = %lease.address, "DHCP answer");
                }
            }
            Err(silence) => {
                counters.dhcp_dropped.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(?silence, address = %lease.address, "DHCP packet without an answer");
            }
        }
    }
}

/// When the next packet may be looked at: a guest that asks without end costs no more than this.
struct Budget {
    /// The time up to which packets were paid for.
    paid: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { paid: now }
    }

    fn next(&mut self, now: Instant) -> Instant {
        self.paid = self.paid.max(now.checked_sub(BURST).unwrap_or(now)) + INTERVAL;
        self.paid.max(now)
    }
}

/// Ethernet's.
const PACKET_BYTES_MAX: usize = 1500;

/// Twenty packets a second, after forty at once.
const INTERVAL: Duration = Duration::from_millis(50);
const BURST: Duration = Duration::from_secs(2);

const ERROR_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{BURST, Budget, INTERVAL};

    #[test]
    fn a_burst_is_served_and_then_a_trickle() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let later = start + Duration::from_secs(3600);
        let at_once = (0..1000).take_while(|_| budget.next(later) == later).count();
        assert_eq!(at_once, 40);
        assert!(budget.next(later) > later);
        let rested = later + BURST + INTERVAL * 4;
        assert_eq!(budget.next(rested), rested);
    }
}
