//! The control socket of a machine, from this side ([`ec2vmm_vmm_api::control`]).

mod carrier;
#[cfg(test)]
mod tests;

use std::{io, os::fd::OwnedFd, path::PathBuf, time::Duration};

use ec2vmm_vmm_api::{
    Event,
    config::RateLimit,
    control::{
        AttachDisk, AttachNet, Balloon, Disk, Disks, LAYERS_MAX, Machine, Metrics, Net, NetLimits, Nets,
        PowerRequest, Problem, ResizeDisk, SetBalloon, SnapshotRequest, SnapshotTaken,
    },
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use self::carrier::Carrier;

/// Why a machine did not do or say what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is there.
    #[error("the machine's control socket is closed")]
    Closed(#[source] io::Error),
    /// The conversation broke off.
    #[error("talking to the machine")]
    Http(#[from] hyper::Error),
    /// It does not answer.
    #[error("the machine has not answered for {} s", ANSWER_MAX.as_secs())]
    Silent,
    /// More descriptors than one request can carry.
    #[error("{0} descriptors: one request carries at most {DESCRIPTORS_MAX}")]
    TooMany(usize),
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
pub struct Control {
    socket: PathBuf,
}

/// How far a device has gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Detached {
    /// The guest has been asked for it.
    Asked,
    /// It is gone.
    Gone,
}

/// Each of these fails with an [`Error`]; what the machine has refused has changed nothing.
#[allow(clippy::missing_errors_doc, reason = "said once, above")]
impl Control {
    /// The way there; nobody is asked yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// What the machine is and does.
    pub async fn machine(&self) -> Result<Machine, Error> {
        self.get("/machine").await
    }

    /// Its counters.
    pub async fn metrics(&self) -> Result<Metrics, Error> {
        self.get("/metrics").await
    }

    /// Does something to its power.
    pub async fn power(&self, request: impl Into<PowerRequest>) -> Result<(), Error> {
        self.whole(Method::PUT, "/machine/power", json(&request.into())?, Vec::new()).await?;
        Ok(())
    }

    /// Makes it stand still; done once it does.
    pub async fn pause(&self) -> Result<(), Error> {
        self.whole(Method::PUT, "/machine/pause", Vec::new(), Vec::new()).await?;
        Ok(())
    }

    /// Lets it go on.
    pub async fn resume(&self) -> Result<(), Error> {
        self.whole(Method::PUT, "/machine/resume", Vec::new(), Vec::new()).await?;
        Ok(())
    }

    /// Writes it into these two files, which are sent, and closed here. It stands still meanwhile, and this waits
    /// for as long as it takes; others are answered.
    pub async fn snapshot(
        &self,
        request: &SnapshotRequest,
        state: OwnedFd,
        memory: OwnedFd,
    ) -> Result<SnapshotTaken, Error> {
        let (_, body) =
            self.answer(Method::POST, "/machine/snapshot", json(request)?, vec![state, memory]).await?;
        from_json(&body)
    }

    /// Its disks.
    pub async fn disks(&self) -> Result<Vec<Disk>, Error> {
        self.get::<Disks>("/machine/disks").await.map(|disks| disks.disks)
    }

    /// Gives it a disk out of these files, of which each layer is one. They are sent, and closed here.
    pub async fn attach_disk(&self, disk: &AttachDisk, files: Vec<OwnedFd>) -> Result<Disk, Error> {
        self.exchange(Method::POST, "/machine/disks", disk, files).await
    }

    /// Asks the guest to let go of a disk, or takes it by force.
    pub async fn detach_disk(&self, id: &str, force: bool) -> Result<Detached, Error> {
        self.delete(&format!("/machine/disks/{id}?force={force}")).await
    }

    /// Makes a disk larger.
    pub async fn resize_disk(&self, id: &str, size: &ResizeDisk) -> Result<Disk, Error> {
        self.exchange(Method::PUT, &format!("/machine/disks/{id}/size"), size, Vec::new()).await
    }

    /// Limits what passes of a disk.
    pub async fn limit_disk(&self, id: &str, limit: &RateLimit) -> Result<Disk, Error> {
        self.exchange(Method::PUT, &format!("/machine/disks/{id}/limit"), limit, Vec::new()).await
    }

    /// Limits what passes of a network interface.
    pub async fn limit_net(&self, id: &str, limits: &NetLimits) -> Result<Net, Error> {
        self.exchange(Method::PUT, &format!("/machine/nets/{id}/limits"), limits, Vec::new()).await
    }

    /// Its network interfaces.
    pub async fn nets(&self) -> Result<Vec<Net>, Error> {
        self.get::<Nets>("/machine/nets").await.map(|nets| nets.nets)
    }

    /// Gives it a network interface on this tap, open once for each pair of queues. The descriptors are sent,
    /// and closed here.
    pub async fn attach_net(&self, net: &AttachNet, taps: Vec<OwnedFd>) -> Result<Net, Error> {
        self.exchange(Method::POST, "/machine/nets", net, taps).await
    }

    /// Asks the guest to let go of a network interface, or takes it by force.
    pub async fn detach_net(&self, id: &str, force: bool) -> Result<Detached, Error> {
        self.delete(&format!("/machine/nets/{id}?force={force}")).await
    }

    /// Its balloon.
    pub async fn balloon(&self) -> Result<Balloon, Error> {
        self.get("/machine/balloon").await
    }

    /// Asks its guest for memory.
    pub async fn set_balloon(&self, target: &SetBalloon) -> Result<Balloon, Error> {
        self.exchange(Method::PUT, "/machine/balloon", target, Vec::new()).await
    }

    /// Follows the machine's events, from the last few on. Waits as long as the machine needs to begin.
    pub async fn events(&self) -> Result<Events, Error> {
        let response = self.send(Method::GET, "/events", Vec::new(), Vec::new()).await?;
        if !response.status().is_success() {
            return Err(Error::Refused { status: response.status().as_u16(), detail: "GET /events".into() });
        }
        Ok(Events { body: response.into_body(), line: Vec::new(), ended: false })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let (_, body) = self.whole(Method::GET, path, Vec::new(), Vec::new()).await?;
        from_json(&body)
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        descriptors: Vec<OwnedFd>,
    ) -> Result<T, Error> {
        let (_, body) = self.whole(method, path, json(body)?, descriptors).await?;
        from_json(&body)
    }

    async fn delete(&self, path: &str) -> Result<Detached, Error> {
        let (status, _) = self.whole(Method::DELETE, path, Vec::new(), Vec::new()).await?;
        Ok(if status == StatusCode::ACCEPTED { Detached::Asked } else { Detached::Gone })
    }

    async fn whole(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(StatusCode, Bytes), Error> {
        let exchange = self.answer(method, path, body, descriptors);
        tokio::time::timeout(ANSWER_MAX, exchange).await.map_err(|_| Error::Silent)?
    }

    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(StatusCode, Bytes), Error> {
        let response = self.send(method, path, body, descriptors).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Error::Nonsense(error.to_string()))?.to_bytes();
        match status.is_success() {
            true => Ok((status, body)),
            false => Err(refused(status, &body)),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Response<Incoming>, Error> {
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(Error::TooMany(descriptors.len()));
        }
        let stream = UnixStream::connect(&self.socket).await.map_err(Error::Closed)?;
        let stream = Carrier::new(stream, descriptors);
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

fn json(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Nonsense(error.to_string()))
}

fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Nonsense(error.to_string()))
}

fn refused(status: StatusCode, body: &[u8]) -> Error {
    let detail = serde_json::from_slice::<Problem>(body).map(|problem| problem.detail);
    Error::Refused { status: status.as_u16(), detail: detail.unwrap_or_default() }
}

/// What a machine tells, as it happens.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    line: Vec<u8>,
    ended: bool,
}

impl Events {
    /// The next event; none when there will be no more. Loses nothing when it is dropped while it waits.
    pub async fn next(&mut self) -> Option<Event> {
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

/// The most descriptors that can be sent with one request.
const DESCRIPTORS_MAX: usize = LAYERS_MAX;
/// How long a machine that serves its socket at all can take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 1 << 20;
const LINE_BYTES_MAX: usize = 1 << 20;
