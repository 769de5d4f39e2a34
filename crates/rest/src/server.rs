//! The socket's side of the server: connections, how many, how long, and their end.
//!
//! Invariant: nothing that clients do, or do not do, takes more than [`Limits`] allow.

use std::{io, os::unix::net::UnixListener as StdListener, pin::pin, sync::Arc, time::Duration};

use axum::{Router, http::Request};
use ec2vmm_rest_api::{PROBLEM_MEDIA_TYPE, Problem};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{
    ending::Ending,
    metrics::Metrics,
    routes::{REQUESTS_MAX, Rest},
    stall::Stall,
};

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at one time; those beyond are told to come again (503).
    pub connections: u32,
    /// How long a head may take to come, and how long a connection may be idle.
    pub head: Duration,
    /// How long a client may take nothing of its answer.
    pub stall: Duration,
    /// How long requests that are under way may take when the server ends.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            head: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            drain: Duration::from_secs(20),
        }
    }
}

/// A server on a Unix socket.
pub struct Server {
    listener: UnixListener,
    router: Router,
    metrics: Arc<Metrics>,
    under_way: Arc<Semaphore>,
    limits: Limits,
    ending: Ending,
}

impl Server {
    /// A server on this socket, which ends when `rest`'s end comes. Call it on a Tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be waited for.
    pub fn new(listener: StdListener, rest: Rest, limits: Limits) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let metrics = Arc::clone(&rest.metrics);
        let under_way = Arc::clone(&rest.under_way);
        let ending = rest.ending.clone();
        Ok(Self { listener, router: rest.router(), metrics, under_way, limits, ending })
    }

    /// Serves until the end is asked for, then finishes what is under way. Connections that come meanwhile
    /// wait in the listening socket, which its owner may pass on.
    pub async fn serve(mut self) {
        let places = Arc::new(Semaphore::new(self.limits.connections as usize));
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.ending.comes() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => self.talk(stream, place),
                    Err(_) => self.refuse(stream),
                },
                Err(error) => {
                    // Out of descriptors, most likely: they come back as clients go.
                    tracing::warn!(%error, "no connection can be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        let drained = async {
            drop(places.acquire_many(self.limits.connections).await);
            // Whose clients are gone, but which are to be finished all the same.
            drop(self.under_way.acquire_many(REQUESTS_MAX).await);
        };
        if tokio::time::timeout(self.limits.drain, drained).await.is_err() {
            tracing::warn!("requests under way took too long, and are broken off");
        }
    }

    fn talk(&self, stream: UnixStream, place: OwnedSemaphorePermit) {
        let stream = Stall::new(stream, self.limits.stall);
        let endless = stream.endless();
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(endless.clone());
            router.call(request)
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.limits.head).max_buf_size(HEAD_BYTES_MAX);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = connection.with_upgrades();
        let mut ending = self.ending.clone();
        let present = self.metrics.connected();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = ending.comes() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection broke off");
            }
            drop((place, present));
        });
    }

    fn refuse(&self, mut stream: UnixStream) {
        self.metrics.refused();
        tokio::spawn(async move {
            // Whoever does not read it, even so short, is not waited for.
            let _ = tokio::time::timeout(ACCEPT_PAUSE, stream.write_all(too_many().as_bytes())).await;
        });
    }
}

/// The answer to a connection too many. Nobody has read what it asks for.
fn too_many() -> String {
    let problem = Problem {
        kind: "urn:ec2vmm:problem:RequestLimitExceeded".to_owned(),
        title: "Service Unavailable".to_owned(),
        status: 503,
        detail: "There are too many connections".to_owned(),
        instance: "urn:ec2vmm:request:none".to_owned(),
        code: "RequestLimitExceeded".to_owned(),
        hint: Some("close connections that are not used, and try again shortly".to_owned()),
    };
    let body = serde_json::to_string(&problem).unwrap_or_default();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {PROBLEM_MEDIA_TYPE}\r\ncontent-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// How long nothing is accepted after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The most that a request's head may have, bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
