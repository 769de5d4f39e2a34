//! The control socket, by real sockets. How a client's bytes are cut into pieces changes no answer; every
//! answer is one of HTTP's; nothing is kept beyond the bounds; a client that has said its last is let go.

#![no_main]

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::atomic::{AtomicU64, Ordering},
};

use arbitrary::Arbitrary;
use ec2vmm_devices_fuzz::heap;
use ec2vmm_vmm::control::{ControlServer, fake::Fake};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    parts: Vec<Part>,
    cuts: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Part {
    Request { method: Method, path: Path, headers: Vec<Header>, body: Body },
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Method {
    Get,
    Put,
    Post,
    Delete,
    Head,
    Other(String),
}

#[derive(Arbitrary, Debug)]
enum Path {
    Known(u8),
    Other(String),
}

#[derive(Arbitrary, Debug)]
enum Header {
    Length(u16),
    Json,
    Close,
    KeepAlive,
    Continue,
    Chunked,
    Other(String, String),
}

#[derive(Arbitrary, Debug)]
enum Body {
    None,
    Known(u8),
    Text(String),
    Bytes(Vec<u8>),
}

impl Part {
    fn bytes(&self) -> Vec<u8> {
        let Self::Request { method, path, headers, body } = self else {
            let Self::Bytes(bytes) = self else { return Vec::new() };
            return bytes.clone();
        };
        let method = match method {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Post => "POST",
            Method::Delete => "DELETE",
            Method::Head => "HEAD",
            Method::Other(method) => method,
        };
        let path = match path {
            Path::Known(which) => PATHS[usize::from(*which) % PATHS.len()],
            Path::Other(path) => path,
        };
        let body = match body {
            Body::None => Vec::new(),
            Body::Known(which) => BODIES[usize::from(*which) % BODIES.len()].into(),
            Body::Text(text) => text.clone().into_bytes(),
            Body::Bytes(bytes) => bytes.clone(),
        };
        let mut bytes = format!("{method} {path} HTTP/1.1\r\n").into_bytes();
        if !body.is_empty() {
            bytes.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
        }
        for header in headers {
            bytes.extend(header.line().bytes());
        }
        bytes.extend(b"\r\n");
        bytes.extend(body);
        bytes
    }
}

impl Header {
    fn line(&self) -> String {
        match self {
            Self::Length(len) => format!("Content-Length: {len}\r\n"),
            Self::Json => "Content-Type: application/json\r\n".into(),
            Self::Close => "Connection: close\r\n".into(),
            Self::KeepAlive => "Connection: keep-alive\r\n".into(),
            Self::Continue => "Expect: 100-continue\r\n".into(),
            Self::Chunked => "Transfer-Encoding: chunked\r\n".into(),
            Self::Other(name, value) => format!("{name}: {value}\r\n"),
        }
    }
}

const PATHS: [&str; 21] = [
    "/machine",
    "/metrics",
    "/events",
    "/machine/power",
    "/machine/pause",
    "/machine/resume",
    "/machine/disks",
    "/machine/disks/a",
    "/machine/disks/a?force=true",
    "/machine/disks/a/size",
    "/machine/disks/a/limit",
    "/machine/nets",
    "/machine/nets/a",
    "/machine/nets/a?force=true",
    "/machine/nets/a/limits",
    "/machine/balloon",
    "/machine/snapshot",
    "/machine/working-set",
    "http://m/machine",
    "http://m/machine?force=true",
    "/",
];
const BODIES: [&str; 10] = [
    r#"{"action":"reset"}"#,
    r#"{"action":"power_off"}"#,
    r#"{"action":"power_button"}"#,
    r#"{"action":"none"}"#,
    r#"{"id":"a","layers":[],"serial":"s"}"#,
    r#"{"id":"a","layers":["raw"],"serial":"s"}"#,
    r#"{"id":"a","mac":[2,0,0,0,0,1]}"#,
    r#"{"bytes":4096}"#,
    r#"{"target_bytes":4096}"#,
    "{}",
];

/// Says all that `bytes` are, in these pieces. Returns the answers, and what was done.
fn exchange(bytes: &[u8], cuts: &[u8]) -> (Vec<u8>, Fake) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("ec2vmm-fuzz-control-{}-{count}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let mut server =
        ControlServer::new(UnixListener::bind_addr(&address).expect("a name of its own")).expect("a server");
    let mut client = UnixStream::connect_addr(&address).expect("it listens");
    client.set_nonblocking(true).expect("a socket");
    let (mut fake, mut answers) = (Fake::default(), Vec::new());
    let before = heap::live_bytes();
    let mut rest = bytes;
    let mut cuts = cuts.iter();
    while !rest.is_empty() {
        let len = cuts.next().map_or(rest.len(), |&cut| usize::from(cut).clamp(1, rest.len()));
        let (piece, after) = rest.split_at(len);
        match client.write(piece) {
            Ok(_) => {}
            // It has heard enough, and says so in its answer.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            Err(error) => panic!("{error}: a few thousand bytes fit into a socket"),
        }
        rest = after;
        server.ready(&mut fake);
        read(&mut client, &mut answers);
    }
    let kept = heap::live_bytes().saturating_sub(before + answers.capacity());
    assert!(kept < 256 * 1024, "{kept} bytes are kept");
    // Fails where the server has closed.
    let _ = client.shutdown(Shutdown::Write);
    let gone = (0..ROUNDS).any(|_| {
        server.ready(&mut fake);
        read(&mut client, &mut answers)
    });
    let streams = answers.windows(STREAM.len()).any(|window| window == STREAM.as_bytes());
    assert!(gone || streams, "a client that has said its last is kept");
    (answers, fake)
}

/// How much of what was done is answered by nothing more than that.
fn without_content(fake: &Fake) -> usize {
    let is_taken = |asked: &&String| asked.starts_with("detach ") && asked.ends_with(" true");
    fake.done.len() + fake.told + fake.asked.iter().filter(is_taken).count()
}

/// Whether the other end has closed.
fn read(client: &mut UnixStream, answers: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match client.read(&mut buffer) {
            Ok(0) => return true,
            Ok(len) => answers.extend(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

/// The statuses of all answers. What follows one to HEAD cannot be told from its content, so that requests
/// with HEAD are looked at up to there.
fn statuses(mut answers: &[u8]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !answers.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = response.parse(answers) else {
            panic!("no answer: {}", String::from_utf8_lossy(answers));
        };
        let code = response.code.expect("a status");
        statuses.push(code);
        let length = response.headers.iter().find(|header| header.name == "Content-Length");
        let length = length.map_or(0, |length| {
            str::from_utf8(length.value).expect("digits").parse::<usize>().expect("a number")
        });
        if response.headers.iter().any(|header| header.value == STREAM.as_bytes()) {
            break;
        }
        answers = answers.get(head + length..).unwrap_or_default();
    }
    statuses
}

const STREAM: &str = "application/x-ndjson";
/// Turns in which all that was said has long been answered.
const ROUNDS: usize = 1000;

fuzz_target!(|input: Input| {
    let bytes: Vec<u8> = input.parts.iter().flat_map(Part::bytes).collect();
    // Where a head that never ends is cut off depends on when it came.
    if bytes.len() > 16 * 1024 {
        return;
    }
    let whole = exchange(&bytes, &[]);
    let cut = exchange(&bytes, &input.cuts);
    let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
    let without = |answers: &[u8]| {
        let mut text = answers.to_vec();
        while let Some(at) = text.windows(go_on.len()).position(|window| window == go_on) {
            text.drain(at..at + go_on.len());
        }
        text
    };
    assert_eq!(without(&whole.0), without(&cut.0));
    let deeds = |fake: &Fake| (fake.done.clone(), fake.told, fake.asked.clone());
    assert_eq!(deeds(&whole.1), deeds(&cut.1));
    if !bytes.windows(4).any(|window| window == b"HEAD") {
        let statuses = statuses(&without(&whole.0));
        assert_eq!(statuses.iter().filter(|status| **status == 204).count(), without_content(&whole.1));
        let known = [200, 202, 204, 400, 404, 405, 411, 413, 415, 417, 431, 501, 503, 505];
        assert!(statuses.iter().all(|status| known.contains(status)), "{statuses:?}");
    }
});
