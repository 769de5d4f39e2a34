//! Requests on a socket that a thread answers.

use std::{
    fs::File,
    io::{self, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    thread::JoinHandle,
};

use ec2vmm_vmm_api::{config::Format, control::AttachDisk};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::{Control, DESCRIPTORS_MAX, Detached, Error};

/// Answers one request, and tells what it was and what came with it.
fn serve(listener: UnixListener, answer: &'static str) -> JoinHandle<(String, Vec<OwnedFd>)> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut seen, mut came) = (Vec::new(), Vec::new());
        while !is_whole(&seen) {
            let count = receive(&stream, &mut seen, &mut came).unwrap();
            assert_ne!(count, 0, "{}", String::from_utf8_lossy(&seen));
        }
        stream.write_all(answer.as_bytes()).unwrap();
        (String::from_utf8(seen).unwrap(), came)
    })
}

fn receive(stream: &UnixStream, seen: &mut Vec<u8>, came: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 4096];
    let received = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            came.extend(descriptors);
        }
    }
    seen.extend_from_slice(&bytes[..received.bytes]);
    Ok(received.bytes)
}

fn is_whole(seen: &[u8]) -> bool {
    let text = String::from_utf8_lossy(seen);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

fn control(answer: &'static str) -> (tempfile::TempDir, Control, JoinHandle<(String, Vec<OwnedFd>)>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let server = serve(UnixListener::bind(&path).unwrap(), answer);
    (folder, Control::new(path), server)
}

fn wanted(layers: usize) -> AttachDisk {
    AttachDisk {
        id: "vol-1".into(),
        layers: vec![Format::Raw; layers],
        read_only: false,
        scratch: false,
        serial: "vol1".into(),
        queues: None,
        rate_limit: ec2vmm_vmm_api::config::RateLimit::default(),
    }
}

const DISK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 130\r\n\r\n\
    {\"id\":\"vol-1\",\"serial\":\"vol1\",\"size_bytes\":1048576,\"read_only\":false,\"boots\":false,\"pci_device\":5,\"leaving\":false,\"rate_limit\":{}}";

#[tokio::test]
async fn descriptors_arrive_with_their_request_in_their_order() {
    let (_folder, control, server) = control(DISK);
    let files: Vec<File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
    files[0].write_all_at(b"first", 0).unwrap();
    let inodes: Vec<_> = files.iter().map(|file| file.metadata().unwrap().ino()).collect();
    let disk = control.attach_disk(&wanted(3), files.into_iter().map(Into::into).collect()).await.unwrap();
    assert_eq!((disk.id.as_str(), disk.size_bytes), ("vol-1", 1 << 20));
    let (request, came) = server.join().unwrap();
    assert!(request.starts_with("POST /machine/disks HTTP/1.1\r\n"), "{request}");
    assert!(
        request
            .ends_with(r#""layers":["raw","raw","raw"],"read_only":false,"scratch":false,"serial":"vol1","queues":null,"rate_limit":{"bandwidth":null,"operations":null}}"#)
    );
    let came: Vec<File> = came.into_iter().map(Into::into).collect();
    assert_eq!(came.iter().map(|file| file.metadata().unwrap().ino()).collect::<Vec<_>>(), inodes);
    let mut text = String::new();
    (&came[0]).read_to_string(&mut text).unwrap();
    assert_eq!(text, "first");
}

#[tokio::test]
async fn more_than_can_be_sent_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let _listener = UnixListener::bind(&path).unwrap();
    let file = tempfile::tempfile().unwrap();
    let many = (0..=DESCRIPTORS_MAX).map(|_| file.try_clone().unwrap().into()).collect();
    let refused = Control::new(path).attach_disk(&wanted(DESCRIPTORS_MAX + 1), many).await;
    assert!(matches!(refused, Err(Error::TooMany(33))), "{refused:?}");
}

#[tokio::test]
async fn answers_that_have_no_content_are_told_apart() {
    for (answer, expected) in [
        ("HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\n\r\n{}\n", Some(Detached::Asked)),
        ("HTTP/1.1 204 No Content\r\n\r\n", Some(Detached::Gone)),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 47\r\n\r\n{\"status\":404,\"detail\":\"no such\",\"hint\":null}   ",
            None,
        ),
    ] {
        let (_folder, control, server) = control(answer);
        let detached = control.detach_disk("vol-1", true).await;
        match expected {
            Some(expected) => assert_eq!(detached.unwrap(), expected),
            None => assert!(matches!(detached, Err(Error::Refused { status: 404, .. })), "{detached:?}"),
        }
        let (request, _) = server.join().unwrap();
        assert!(request.starts_with("DELETE /machine/disks/vol-1?force=true HTTP/1.1\r\n"), "{request}");
    }
}
