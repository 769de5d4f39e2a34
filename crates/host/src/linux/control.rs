//! The control socket of a machine, from this side ([`ec2vmm_vmm_api::control`]).

use std::{io, path::PathBuf, time::Duration};

use ec2vmm_vmm_api::{
    Event,
    control::{Machine, Metrics, PowerAction, PowerRequest, Problem},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Why a machine did not do or say what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nobody is there.
    #[error("the machine's control socket is closed")]
    Closed(#[source] io::Error),
    /// The conversation broke off.
    #[error("talking to the machine")]
    Http(#[from] hyper::Error),
    /// It does not answer.
    #[error("the machine has not answered for {} s", ANSWER_MAX.as_secs())]
    Silent,
    /// It refused.
    #[error("the machine answered {status}: {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Why, in its words.
        detail: String,
    },
    /// It said something that is not of the contract.
    #[error("the machine answered what makes no sense: {0}")]
    Nonsense(String),
}

/// The way to a machine's control socket.
#[derive(Clone, Debug)]
pub(super) struct Control {
    socket: PathBuf,
}

impl Control {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) async fn machine(&self) -> Result<Machine, Error> {
        self.get("/machine").await
    }

    pub(super) async fn metrics(&self) -> Result<Metrics, Error> {
        self.get("/metrics").await
    }

    pub(super) async fn power(&self, action: PowerAction) -> Result<(), Error> {
        let body = serde_json::to_vec(&PowerRequest { action })
            .map_err(|error| Error::Nonsense(error.to_string()))?;
        self.whole(Method::PUT, "/machine/power", body).await?;
        Ok(())
    }

    /// Follows the machine's events, from the last few on. Waits as long as the machine needs to begin.
    pub(super) async fn events(&self) -> Result<Events, Error> {
        let response = self.send(Method::GET, "/events", Vec::new()).await?;
        if !response.status().is_success() {
            return Err(Error::Refused { status: response.status().as_u16(), detail: "GET /events".into() });
        }
        Ok(Events { body: response.into_body(), line: Vec::new(), ended: false })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let body = self.whole(Method::GET, path, Vec::new()).await?;
        serde_json::from_slice(&body).map_err(|error| Error::Nonsense(error.to_string()))
    }

    async fn whole(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, Error> {
        let exchange = async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| Error::Nonsense(error.to_string()))?.to_bytes();
            match status.is_success() {
                true => Ok(body),
                false => Err(refused(status, &body)),
            }
        };
        tokio::time::timeout(ANSWER_MAX, exchange).await.map_err(|_| Error::Silent)?
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, Error> {
        let stream = UnixStream::connect(&self.socket).await.map_err(Error::Closed)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the answer, which tells whatever goes wrong.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "machine")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Error::Nonsense(error.to_string()))?;
        Ok(sender.send_request(request).await?)
    }
}

fn refused(status: StatusCode, body: &[u8]) -> Error {
    let detail = serde_json::from_slice::<Problem>(body).map(|problem| problem.detail);
    Error::Refused { status: status.as_u16(), detail: detail.unwrap_or_default() }
}

/// What a machine tells, as it happens.
#[derive(Debug)]
pub(super) struct Events {
    body: Incoming,
    line: Vec<u8>,
    ended: bool,
}

impl Events {
    /// The next event; none when there will be no more. Loses nothing when it is dropped while it waits.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(event) => return Some(event),
                    // Of a newer version, say.
                    Err(error) => tracing::warn!(%error, "a machine tells something unknown"),
                }
                continue;
            }
            if self.ended || self.line.len() > LINE_BYTES_MAX {
                return None;
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    self.line.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default());
                }
                Some(Err(_)) | None => self.ended = true,
            }
        }
    }
}

/// How long a machine that serves its socket at all can take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 1 << 20;
const LINE_BYTES_MAX: usize = 1 << 20;
