//! Events as they come, and consoles.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::UnixStream,
};

use crate::place::{DEADLINE, Place, UNKNOWN};

/// Server-sent events.
struct Stream(Lines<BufReader<UnixStream>>);

impl Stream {
    async fn open(place: &Place, path: &str, header: &str) -> Self {
        let mut stream = UnixStream::connect(&place.socket).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut stream = Self(BufReader::new(stream).lines());
        let mut head = Vec::new();
        while let Some(line) = stream.line().await.filter(|line| !line.is_empty()) {
            head.push(line.to_ascii_lowercase());
        }
        assert!(head[0].starts_with("http/1.1 200"), "{head:?}");
        assert!(head.contains(&"content-type: text/event-stream".to_owned()), "{head:?}");
        stream
    }

    async fn line(&mut self) -> Option<String> {
        tokio::time::timeout(DEADLINE, self.0.next_line()).await.expect("a line").unwrap()
    }

    /// The next event: what the stream says of it, which must be what it is.
    async fn next(&mut self) -> Value {
        let (mut id, mut kind) = (String::new(), String::new());
        loop {
            let line = self.line().await.expect("an event");
            match line.split_once(": ") {
                Some(("id", value)) => value.clone_into(&mut id),
                Some(("event", value)) => value.clone_into(&mut kind),
                Some(("data", value)) => {
                    let event: Value = serde_json::from_str(value).unwrap();
                    assert_eq!(event["sequence"].to_string(), id);
                    assert_eq!(event["kind"], kind.as_str());
                    return event;
                }
                // Lengths of chunks, comments, blank lines.
                _ => {}
            }
        }
    }

    async fn until_state(&mut self, state: &str) -> Value {
        loop {
            let event = self.next().await;
            if event["current_state"] == state {
                return event;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_it_was() {
    let (place, id) = Place::furnished().await;
    let listed = place.get("/v1/events").await.expect(200);
    let listed = listed["events"].as_array().unwrap();
    assert_eq!(listed[0]["kind"], "launched");
    let mut first = Stream::open(&place, "/v1/events/stream?after=0", "").await;
    assert_eq!(&first.next().await, &listed[0]);
    let running = first.until_state("running").await;
    let last = running["sequence"].to_string();
    drop(first);

    place.act("POST", &format!("/v1/instances/{id}/stop")).await.expect(202);
    place.until(&id, "stopped").await;
    // The header wins over the query, as a browser's reconnect needs.
    let mut second =
        Stream::open(&place, "/v1/events/stream?after=0", &format!("Last-Event-ID: {last}\r\n")).await;
    let next = second.next().await;
    assert!(next["sequence"].as_u64() > running["sequence"].as_u64(), "{next}");
    second.until_state("stopped").await;
    // And what happens from now on.
    place.act("POST", &format!("/v1/instances/{id}/start")).await.expect(202);
    second.until_state("running").await;

    let wrong = place.ask("GET", "/v1/events/stream", &[("last-event-id", "yesterday")], "").await;
    assert!(wrong.problem().starts_with("400 InvalidParameterValue: "), "{}", wrong.problem());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_one_instance() {
    let (place, id) = Place::furnished().await;
    let mut stream = Stream::open(&place, &format!("/v1/events/stream?instance_id={id}"), "").await;
    let launch = json!({"image": "minimal", "instance_type": "t3.nano"});
    let other = place.post("/v1/instances", &launch).await.expect(201);
    place.until(other["instances"][0]["instance_id"].as_str().unwrap(), "running").await;
    place.act("POST", &format!("/v1/instances/{id}/reboot")).await.expect(202);
    assert_eq!(stream.next().await["instance_id"], id.as_str());
    let malformed = place.get("/v1/events/stream?instance_id=bogus").await;
    assert!(malformed.problem().starts_with("400 InvalidInstanceID.Malformed: "), "{}", malformed.problem());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_the_server() {
    let (place, _) = Place::furnished().await;
    let mut stream = Stream::open(&place, "/v1/events/stream", "").await;
    place.end.come();
    while stream.line().await.is_some() {}
    tokio::time::timeout(DEADLINE, place.server).await.expect("the server ends").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_to_the_console() {
    let (place, id) = Place::furnished().await;
    let path = format!("/v1/instances/{id}/console");
    let shown = place.get(&path).await.expect(200);
    assert!(shown["output"].is_string());

    let plain = place.get(&format!("{path}/stream")).await;
    assert!(plain.problem().starts_with("426 UpgradeRequired: "), "{}", plain.problem());
    let unknown = place.get(&format!("/v1/instances/{UNKNOWN}/console/stream")).await;
    assert!(unknown.problem().starts_with("404 "), "{}", unknown.problem());

    let mut stream = UnixStream::connect(&place.socket).await.unwrap();
    let upgrade = "connection: Upgrade\r\nupgrade: ec2vmm-console\r\n";
    let request = format!("GET {path}/stream HTTP/1.1\r\nhost: x\r\n{upgrade}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: ec2vmm-console"), "{head}");
    // The simulated guest says what it is told.
    stream.write_all(b"hello\r").await.unwrap();
    let mut echo = [0; 6];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello\r");

    place.act("POST", &format!("/v1/instances/{id}/stop?force=true")).await.expect(202);
    place.until(&id, "stopped").await;
    // The simulated host sees that nobody is there when somebody types.
    let _ = stream.write_all(b"\r").await;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the line ends with the machine");
}
