//! The daemon, as commands see it: requests over its Unix socket, each with an end.
//!
//! Invariants: every wait has a deadline but that for the next event of a stream, whose caller gives one;
//! no answer is kept that is longer than [`ANSWER_BYTES_MAX`].

mod download;
mod error;
mod events;
mod pages;
mod sse;

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};

pub(crate) use self::{
    download::Broken,
    error::Error,
    events::{Came, Events},
};
pub(crate) use ec2vmm_rest_api::Problem;

/// A daemon's socket.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    runtime: Runtime,
    patience: Duration,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    method: Method,
    target: String,
    body: Bytes,
    headers: Vec<(&'static str, String)>,
}

impl Call {
    /// A request without a body for what these segments name.
    pub(crate) fn new(method: Method, segments: &[&str]) -> Self {
        let target = segments.iter().map(|segment| format!("/{}", encode(segment))).collect();
        Self { method, target, body: Bytes::new(), headers: Vec::new() }
    }

    pub(crate) fn get(segments: &[&str]) -> Self {
        Self::new(Method::GET, segments)
    }

    pub(crate) fn post(segments: &[&str]) -> Self {
        Self::new(Method::POST, segments)
    }

    /// Adds a parameter to the query.
    pub(crate) fn with(mut self, name: &str, value: impl AsRef<str>) -> Self {
        let mark = if self.target.contains('?') { '&' } else { '?' };
        self.target += &format!("{mark}{}={}", encode(name), encode(value.as_ref()));
        self
    }

    /// Adds a parameter, if there is one.
    pub(crate) fn with_some(self, name: &str, value: Option<impl AsRef<str>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// A request that may be sent twice and is done once.
    pub(crate) fn once(mut self, token: &str) -> Self {
        self.headers.push((IDEMPOTENCY_KEY, token.to_owned()));
        self
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// Gives it a document.
    pub(crate) fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Machinery(error.into()))?;
        self.body = body.into();
        self.headers.push((CONTENT_TYPE.as_str(), "application/json".to_owned()));
        Ok(self)
    }
}

impl Client {
    /// Connects to nothing yet.
    pub(crate) fn new(socket: &Path) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self {
            socket: socket.to_owned(),
            runtime: runtime.map_err(Error::Machinery)?,
            patience: ANSWER_PATIENCE,
        })
    }

    /// One that waits this long for an answer.
    pub(crate) fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Asks, and reads the answer as a document.
    pub(crate) fn ask<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Error> {
        let answer = self.tell(call)?;
        serde_json::from_slice(&answer).map_err(|error| Error::Nonsense(format!("{}: {error}", call.target)))
    }

    /// Asks, and gives back the answer as it is.
    pub(crate) fn tell(&self, call: &Call) -> Result<Bytes, Error> {
        self.runtime.block_on(async {
            let talk = async {
                let response = send(&self.socket, call, &[]).await?;
                read(response).await
            };
            timeout(self.patience, talk).await.map_err(|_| Error::Slow(self.patience))?
        })
    }

    /// Asks once more where the daemon went away in the middle, which it may do to be upgraded. Only for
    /// what comes to the same if it is done twice.
    pub(crate) fn insist<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Error> {
        let mut outcome = self.ask(call);
        let mut tries = 0;
        while tries < RETRIES_MAX && matches!(&outcome, Err(Error::Gone(_))) {
            tries += 1;
            self.pause(RETRY_PAUSE);
            outcome = match self.ask(call) {
                // Not back yet.
                Err(Error::NoDaemon { .. }) => Err(Error::Gone(None)),
                other => other,
            };
        }
        outcome
    }

    /// Lets time pass.
    pub(crate) fn pause(&self, pause: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(pause).await });
    }

    /// Opens a stream of events.
    pub(crate) fn events(&self, call: &Call) -> Result<Events<'_>, Error> {
        let call = call.clone().header(ACCEPT.as_str(), "text/event-stream");
        let response = self.runtime.block_on(async {
            let answer = async {
                let response = send(&self.socket, &call, &[]).await?;
                refusal(response).await
            };
            timeout(self.patience, answer).await.map_err(|_| Error::Slow(self.patience))?
        })?;
        Ok(Events::new(&self.runtime, response.into_body()))
    }

    /// Leaves HTTP behind: the connection, and what the daemon has said on it already.
    pub(crate) fn upgrade(&self, call: &Call, protocol: &str) -> Result<(OwnedFd, Bytes), Error> {
        self.runtime.block_on(async {
            let talk = async {
                let headers = [(UPGRADE.as_str(), protocol), (CONNECTION.as_str(), "upgrade")];
                let response = refusal(send(&self.socket, call, &headers).await?).await?;
                if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    return Err(Error::Nonsense(format!("status {} and no upgrade", response.status())));
                }
                let upgraded =
                    hyper::upgrade::on(response).await.map_err(|error| Error::Gone(Some(error)))?;
                into_socket(upgraded)
            };
            timeout(self.patience, talk).await.map_err(|_| Error::Slow(self.patience))?
        })
    }
}

/// Sends a request on a connection of its own, and reads the head of the answer.
async fn send(
    socket: &Path,
    call: &Call,
    headers: &[(&'static str, &str)],
) -> Result<Response<Incoming>, Error> {
    let mut connection = connect(socket).await?;
    // What it is called is the same for all; HTTP wants a name (RFC 9112, section 3.2).
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(&call.target)
        .header(HOST, "localhost")
        .header(hyper::header::USER_AGENT, concat!("ec2vmm/", env!("CARGO_PKG_VERSION")));
    for (name, value) in &call.headers {
        request = request.header(*name, value);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Full::new(call.body.clone()))
        .map_err(|error| Error::Machinery(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    connection.send_request(request).await.map_err(broken)
}

async fn connect(socket: &Path) -> Result<SendRequest<Full<Bytes>>, Error> {
    let stream = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            // More clients wait to be accepted than the socket holds (unix(7)).
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(no_connection(socket, error)),
        }
    };
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| Error::Gone(Some(error)))?;
    // It ends with the connection; what goes wrong on it is what the request says.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

fn no_connection(socket: &Path, source: io::Error) -> Error {
    let socket = socket.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NoDaemon { socket, source },
        io::ErrorKind::PermissionDenied => Error::Forbidden { socket },
        _ => Error::Connect { socket, source },
    }
}

/// The rest of an answer.
async fn read(response: Response<Incoming>) -> Result<Bytes, Error> {
    body(refusal(response).await?).await
}

/// An answer, unless the daemon says no.
async fn refusal(response: Response<Incoming>) -> Result<Response<Incoming>, Error> {
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let body = body(response).await?;
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => Err(Error::Refused(Box::new(problem))),
        Err(_) => {
            let said: String = String::from_utf8_lossy(&body).chars().take(SAID_CHARS_MAX).collect();
            Err(Error::Nonsense(format!("status {status}, {said:?}")))
        }
    }
}

async fn body(response: Response<Incoming>) -> Result<Bytes, Error> {
    let limited = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let whole = limited.collect().await.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(error) => broken(*error),
        Err(error) if error.is::<LengthLimitError>() => Error::TooLong(ANSWER_BYTES_MAX),
        Err(error) => Error::Nonsense(error.to_string()),
    })?;
    Ok(whole.to_bytes())
}

/// What hyper says of a connection that did not hold.
fn broken(error: hyper::Error) -> Error {
    match error.is_parse() {
        true => Error::Nonsense(error.to_string()),
        false => Error::Gone(Some(error)),
    }
}

/// The socket beneath, for a poll loop.
fn into_socket(upgraded: Upgraded) -> Result<(OwnedFd, Bytes), Error> {
    let parts = upgraded
        .downcast::<TokioIo<UnixStream>>()
        .map_err(|_| Error::Machinery(io::Error::other("the connection is no Unix socket")))?;
    let socket = parts.io.into_inner().into_std().map_err(Error::Machinery)?;
    Ok((socket.into(), parts.read_buf))
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// RFC 3986, section 2.3: all but these is spelled out.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// A page of a thousand instances is about 2 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
const BUSY_PAUSE: Duration = Duration::from_millis(20);
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Ten seconds: an upgrade takes less.
const RETRIES_MAX: u32 = 40;
const SAID_CHARS_MAX: usize = 200;
