//! A daemon that answers what a test says, over a real socket, and remembers what it was asked.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

/// A daemon in a thread of this program.
pub(crate) struct Daemon {
    pub(crate) socket: PathBuf,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    script: Mutex<HashMap<String, VecDeque<Reply>>>,
    asked: Mutex<Vec<String>>,
    tokens: Mutex<Vec<String>>,
    changed: Condvar,
    listeners: Mutex<Vec<mpsc::UnboundedSender<Bytes>>>,
    /// Consoles that have not said what they say.
    speaking: AtomicUsize,
}

/// What it answers. The last of several goes on.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Json(u16, Value),
    Bytes(Vec<u8>),
    /// Server-sent events: those that [`Daemon::tell`] tells.
    Events,
    /// A line to a console: says this, then gives back what it hears, until it hears `q`.
    Console(&'static str),
    /// Says that so many bytes come, and goes away after the first ones.
    Half,
    /// Goes away without a word.
    Gone,
    /// Not HTTP's idea of an answer.
    Text(u16, &'static str),
}

impl Daemon {
    pub(crate) fn start(folder: &Path) -> Self {
        let socket = folder.join("daemon.sock");
        // The one before it may have left it.
        let _ = std::fs::remove_file(&socket);
        let state = Arc::new(State::default());
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let serving = (socket.clone(), Arc::clone(&state));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (socket, state) = serving;
                let listener = UnixListener::bind(socket).unwrap();
                ready.send(()).unwrap();
                tokio::select! {
                    () = accept(listener, &state) => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().unwrap();
        Self { socket, state, stop: Some(stop), thread: Some(thread) }
    }

    /// What to answer to `METHOD /path`.
    pub(crate) fn on(&self, request: &str, replies: impl IntoIterator<Item = Reply>) -> &Self {
        self.state.script.lock().unwrap().insert(request.to_owned(), replies.into_iter().collect());
        self
    }

    pub(crate) fn on_json(&self, request: &str, answer: Value) -> &Self {
        self.on(request, [Reply::Json(200, answer)])
    }

    /// Every request so far: method, path, query, body.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().clone()
    }

    /// The idempotency keys of the requests so far.
    pub(crate) fn tokens(&self) -> Vec<String> {
        self.state.tokens.lock().unwrap().clone()
    }

    /// Waits until so many requests begin like this.
    pub(crate) fn wait_for(&self, request: &str, count: usize) {
        let is_there =
            |asked: &mut Vec<String>| asked.iter().filter(|one| one.starts_with(request)).count() < count;
        let asked = self.state.asked.lock().unwrap();
        let waited = self.state.changed.wait_timeout_while(asked, Duration::from_secs(60), is_there).unwrap();
        assert!(!waited.1.timed_out(), "in vain: {request}, {:?}", waited.0);
    }

    /// Tells an event to all who listen.
    pub(crate) fn tell(&self, event: &Value) {
        let text = format!("id: {}\nevent: {}\ndata: {event}\n\n", event["sequence"], event["kind"]);
        for listener in &*self.state.listeners.lock().unwrap() {
            // Some have gone.
            let _ = listener.send(text.clone().into());
        }
    }

    /// Ends all streams.
    pub(crate) fn hang_up(&self) {
        self.state.listeners.lock().unwrap().clear();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn accept(listener: UnixListener, state: &Arc<State>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(serve(stream, Arc::clone(state)));
    }
}

async fn serve(stream: UnixStream, state: Arc<State>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&state)));
    // A client that goes is no error here.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

async fn answer(
    mut request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Answer>, std::io::Error> {
    let upgrade = hyper::upgrade::on(&mut request);
    let key = format!("{} {}", request.method(), request.uri().path());
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    if let Some(token) = request.headers().get("idempotency-key") {
        state.tokens.lock().unwrap().push(token.to_str().unwrap().to_owned());
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let reply = {
        let mut script = state.script.lock().unwrap();
        let replies = script.get_mut(&key);
        replies.and_then(
            |replies| if replies.len() > 1 { replies.pop_front() } else { replies.front().cloned() },
        )
    };
    let reply =
        reply.unwrap_or_else(|| problem(404, "InvalidInstanceID.NotFound", &format!("no answer to {key}")));
    let mut listens = None;
    if matches!(reply, Reply::Events) {
        let (sender, receiver) = mpsc::unbounded_channel();
        state.listeners.lock().unwrap().push(sender);
        listens = Some(receiver);
    }
    state.asked.lock().unwrap().push(format!("{key}{query} {body}").trim_end().to_owned());
    state.changed.notify_all();
    let respond = |status: u16| Response::builder().status(status);
    // What a console has said before something is asked is on its line before that is answered.
    while state.speaking.load(Ordering::Relaxed) > 0 {
        tokio::task::yield_now().await;
    }
    Ok(match reply {
        Reply::Json(status, value) => {
            let kind = if status < 400 { "application/json" } else { "application/problem+json" };
            respond(status).header("content-type", kind).body(Answer::all(value.to_string())).unwrap()
        }
        Reply::Bytes(bytes) => respond(200).body(Answer::all(bytes)).unwrap(),
        Reply::Text(status, text) => respond(status).body(Answer::all(text)).unwrap(),
        Reply::Events => respond(200)
            .header("content-type", "text/event-stream")
            .body(Answer::Stream(listens.unwrap()))
            .unwrap(),
        Reply::Console(says) => {
            state.speaking.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let line = upgrade.await.map(TokioIo::new);
                let line = match line {
                    Ok(mut line) => line.write_all(says.as_bytes()).await.is_ok().then_some(line),
                    Err(_) => None,
                };
                state.speaking.fetch_sub(1, Ordering::Relaxed);
                if let Some(line) = line {
                    console(line).await;
                }
            });
            respond(StatusCode::SWITCHING_PROTOCOLS.as_u16())
                .header("connection", "upgrade")
                .header("upgrade", "ec2vmm-console")
                .body(Answer::all(""))
                .unwrap()
        }
        Reply::Half => respond(200).body(Answer::Half(Some("half of it".into()))).unwrap(),
        Reply::Gone => return Err(std::io::Error::other("gone")),
    })
}

async fn console(mut line: TokioIo<hyper::upgrade::Upgraded>) {
    let mut byte = [0];
    while line.read(&mut byte).await.is_ok_and(|read| read == 1) && byte != *b"q" {
        if line.write_all(&byte).await.is_err() {
            return;
        }
    }
    // The client may be gone already.
    let _ = line.shutdown().await;
}

/// A body.
enum Answer {
    All(Full<Bytes>),
    Stream(mpsc::UnboundedReceiver<Bytes>),
    Half(Option<Bytes>),
}

impl Answer {
    fn all(bytes: impl Into<Bytes>) -> Self {
        Self::All(Full::new(bytes.into()))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.get_mut() {
            Self::All(body) => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|frame| frame.map_err(never)))
            }
            Self::Stream(events) => {
                events.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
            }
            Self::Half(half) => Poll::Ready(Some(match half.take() {
                Some(half) => Ok(Frame::data(half)),
                None => Err(std::io::Error::other("gone")),
            })),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::All(body) => body.size_hint(),
            Self::Stream(_) | Self::Half(_) => SizeHint::new(),
        }
    }
}

fn never(never: Infallible) -> std::io::Error {
    match never {}
}

pub(crate) fn problem(status: u16, code: &str, detail: &str) -> Reply {
    let title = StatusCode::from_u16(status).unwrap().canonical_reason().unwrap();
    Reply::Json(
        status,
        json!({
            "type": format!("urn:ec2vmm:problem:{code}"),
            "title": title,
            "status": status,
            "detail": detail,
            "instance": "urn:ec2vmm:request:1",
            "code": code,
        }),
    )
}

/// An instance, the nth.
pub(crate) fn instance(nth: u64, name: &str, state: &str) -> Value {
    let codes =
        [("pending", 0), ("running", 16), ("shutting-down", 32), ("terminated", 48), ("stopping", 64)];
    let code = codes.iter().find(|(name, _)| *name == state).map_or(80, |(_, code)| *code);
    json!({
        "instance_id": id(nth),
        "reservation_id": "r-0123456789abcdef0",
        "launch_index": 0,
        "state": state,
        "state_code": code,
        "state_since": "2026-11-22T10:33:13.000Z",
        "region": "us-east-1",
        "image_id": "ami-0123456789abcdef0",
        "instance_type": "t3.micro",
        "vcpus": 2,
        "memory_mib": 1024,
        "architecture": "x86_64",
        "launch_time": "2026-11-22T10:33:13.000Z",
        "key_name": "my-key",
        "login_user": "debian",
        "private_ip_address": format!("172.31.0.{}", 10 + nth),
        "private_dns_name": format!("ip-172-31-0-{}.ec2.internal", 10 + nth),
        "mac_address": "06:00:ac:1f:00:0a",
        "network_interface_id": "eni-0123456789abcdef0",
        "vpc_id": "vpc-0123456789abcdef0",
        "subnet_id": "subnet-0123456789abcdef0",
        "block_devices": [{
            "device_name": "/dev/sda1",
            "volume_id": "vol-0123456789abcdef0",
            "delete_on_termination": true,
            "attach_time": "2026-11-22T10:33:13.000Z",
        }],
        "disable_api_termination": false,
        "disable_api_stop": false,
        "instance_initiated_shutdown_behavior": "stop",
        "tags": if name.is_empty() { json!({}) } else { json!({ "Name": name }) },
    })
}

/// The id of the nth instance: they differ in the first digit.
pub(crate) fn id(nth: u64) -> String {
    format!("i-{nth:x}0000000000000000")
}

/// What happened to the nth instance.
pub(crate) fn event(sequence: u64, nth: u64, from: &str, to: &str) -> Value {
    json!({
        "sequence": sequence,
        "time": "2026-11-22T10:33:14.000Z",
        "kind": "state-changed",
        "instance_id": id(nth),
        "previous_state": from,
        "current_state": to,
        "message": format!("{from} → {to}"),
    })
}
