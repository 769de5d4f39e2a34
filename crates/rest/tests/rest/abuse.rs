//! Clients that are slow, many, large or gone: none of them harms another.

use std::{path::Path, time::Duration};

use ec2vmm_rest::Limits;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{
    client::{parse, raw, request},
    place::{DEADLINE, JSON, Place},
};

async fn connect(socket: &Path) -> UnixStream {
    UnixStream::connect(socket).await.unwrap()
}

async fn to_the_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    // A reset is an end as well.
    let _ = tokio::time::timeout(DEADLINE, read).await.expect("the connection ends");
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_long() {
    let place = Place::new().await;
    let body = format!(r#"{{"image": "{}"}}"#, "x".repeat(300 * 1024));
    let declared = place.ask("POST", "/v1/instances", &[JSON], &body).await;
    assert_eq!(declared.problem(), "413 RequestEntityTooLarge: the body is longer than 262144 bytes");
    let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let head =
        "POST /v1/instances HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let chunked =
        raw(&place.socket, format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}").as_bytes()).await;
    assert_eq!(chunked.status, 413);
    let deep = "[".repeat(100_000);
    let deep = place.ask("POST", "/v1/instances", &[JSON], &format!(r#"{{"tags": {deep}"#)).await;
    assert_eq!(deep.status, 400, "{}", deep.problem());
    place.get("/healthz").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_long_or_none() {
    let place = Place::new().await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(200 * 1024));
    let answer = raw(&place.socket, long.as_bytes()).await;
    assert!(matches!(answer.status, 414 | 431), "{answer:?}");
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(500));
    assert_eq!(raw(&place.socket, many.as_bytes()).await.status, 431);
    assert_eq!(raw(&place.socket, b"\0\x01\x02 nonsense\r\n\r\n").await.status, 400);
    place.get("/healthz").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_never_ends() {
    let limits = Limits { head: Duration::from_millis(100), ..Limits::default() };
    let place = Place::with(limits).await;
    let mut silent = connect(&place.socket).await;
    let mut half = connect(&place.socket).await;
    half.write_all(b"GET /healthz HTTP/1.1\r\nhost:").await.unwrap();
    to_the_end(&mut silent).await;
    to_the_end(&mut half).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads() {
    let limits = Limits { stall: Duration::from_millis(100), ..Limits::default() };
    let place = Place::with(limits).await;
    let mut stream = connect(&place.socket).await;
    // The catalogue, again and again: far more than what a socket takes in.
    let again = "GET /v1/instance-types HTTP/1.1\r\nhost: x\r\n\r\n".repeat(50);
    stream.write_all(again.as_bytes()).await.unwrap();
    place.wait_for_metric("ec2vmm_connections", 1).await;
    let bytes = to_the_end(&mut stream).await;
    assert!(bytes.len() < 50 * 200_000, "it was cut off: {}", bytes.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_comes_keeps_nobody_waiting() {
    let place = Place::new().await;
    let mut slow = connect(&place.socket).await;
    let head = "POST /v1/instances HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    place.get("/v1/instances").await.expect(200);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    // The connection may stay open after the answer.
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        let read = tokio::time::timeout(DEADLINE, slow.read(&mut chunk)).await.expect("an answer").unwrap();
        assert!(read > 0);
        answer.extend_from_slice(&chunk[..read]);
    }
    assert_eq!(parse(&answer).status, 408);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_connections() {
    let connections = 2_000;
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: files.maximum, maximum: files.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    assert!(files.maximum.is_none_or(|most| most > 2 * connections + 100), "too few open files are allowed");
    let place = Place::new().await;
    let mut idle = Vec::new();
    for _ in 0..connections {
        idle.push(connect(&place.socket).await);
    }
    place.get("/v1/instances").await.expect(200);
    // All of them at once.
    let mut talks = tokio::task::JoinSet::new();
    for mut stream in idle {
        talks.spawn(async move {
            stream.write_all(&request("GET", "/v1/instances", &[], "")).await.unwrap();
            parse(&to_the_end(&mut stream).await).status
        });
    }
    let statuses = talks.join_all().await;
    assert!(statuses.iter().all(|&status| status == 200), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_bound_are_told_so() {
    let limits = Limits { connections: 3, ..Limits::default() };
    let place = Place::with(limits).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(&place.socket).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.unwrap();
        assert_eq!(parse(&chunk[..read]).status, 200);
        kept.push(stream);
    }
    let refused = parse(&to_the_end(&mut connect(&place.socket).await).await);
    assert_eq!((refused.status, refused.header("content-type")), (503, Some("application/problem+json")));
    assert_eq!(refused.json()["code"], "RequestLimitExceeded");
    drop(kept);
    place.wait_for_metric("ec2vmm_connections", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_began_is_finished_without_it() {
    let place = Place::new().await;
    place.register("minimal").await;
    let held = place.host.hold(ec2vmm_host::simulated::Operation::InspectImage);
    let body =
        json!({"name": "other", "file": "disk.raw", "format": "raw", "login_user": "root"}).to_string();
    let mut stream = connect(&place.socket).await;
    stream.write_all(&request("POST", "/v1/images", &[JSON], &body)).await.unwrap();
    place.wait_for_metric("ec2vmm_requests_under_way", 2).await;
    drop(stream);
    drop(held);
    let wait = async {
        while place.get("/v1/images/other").await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the image is registered");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_waits_for_what_is_under_way() {
    let place = Place::new().await;
    let held = place.host.hold(ec2vmm_host::simulated::Operation::InspectImage);
    let body =
        json!({"name": "other", "file": "disk.raw", "format": "raw", "login_user": "root"}).to_string();
    let mut stream = connect(&place.socket).await;
    let mut idle = connect(&place.socket).await;
    stream.write_all(&request("POST", "/v1/images", &[JSON], &body)).await.unwrap();
    place.wait_for_metric("ec2vmm_requests_under_way", 2).await;
    place.end.come();
    assert!(to_the_end(&mut idle).await.is_empty(), "idle connections are closed");
    assert!(!place.server.is_finished());
    drop(held);
    assert_eq!(parse(&to_the_end(&mut stream).await).status, 201);
    tokio::time::timeout(DEADLINE, place.server).await.expect("the server ends").unwrap();
}
