//! Another program goes on, and no client is refused.

use std::{
    fs,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use rustix::process::Signal;

use crate::place::{Place, next_event};

#[test]
fn no_client_is_refused() {
    let place = Place::new();
    // A file of its own, which an installation replaces.
    let program = place.folder.path().join("ec2vmmd");
    fs::copy(env!("CARGO_BIN_EXE_ec2vmmd"), &program).unwrap();
    let mut daemon = place.start_as(&mut place.command_of(program.clone()));
    let pid = place.get("/v1/status")["pid"].clone();
    let id = place.furnish();
    let mut events = place.events(0);
    let mut last = next_event(&mut events).expect("an event")["sequence"].as_u64().unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let connected = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, connected, socket) = (Arc::clone(&stop), Arc::clone(&connected), place.socket.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    UnixStream::connect(&socket).expect("never refused");
                    connected.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let started = place.get("/v1/status")["started"].clone();
        let new = program.with_extension("new");
        fs::copy(env!("CARGO_BIN_EXE_ec2vmmd"), &new).unwrap();
        fs::rename(&new, &program).unwrap();
        daemon.signal(Signal::USR2);
        place.notice("RELOADING=1");
        place.notice("READY=1");
        let status = place.get("/v1/status");
        assert_eq!(status["pid"], pid, "one process all along");
        assert_ne!(status["started"], started);
        // The stream ended in order, and goes on where it was.
        while let Some(event) = next_event(&mut events) {
            last = event["sequence"].as_u64().unwrap();
        }
        events = place.events(last);
    }
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("no client was refused"));
    assert!(connected.load(Ordering::Relaxed) > 0);

    // Machines of the simulated host are gone with the program that simulated them.
    place.until(&id, "stopped");
    let next = next_event(&mut place.events(0)).expect("events are remembered");
    assert_eq!(next["kind"], "launched");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().code(), Some(0), "{}", place.log());
    assert!(!place.socket.exists());
}

#[test]
fn a_program_that_cannot_go_on_does_not() {
    let place = Place::new();
    let program = place.folder.path().join("ec2vmmd");
    fs::copy(env!("CARGO_BIN_EXE_ec2vmmd"), &program).unwrap();
    let daemon = place.start_as(&mut place.command_of(program.clone()));
    let id = place.furnish();
    fs::remove_file(&program).unwrap();
    daemon.signal(Signal::USR2);
    while !place.log().contains("no upgrade: this program goes on") {
        thread::yield_now();
    }
    assert_eq!(place.get(&format!("/v1/instances/{id}"))["state"], "running");
}
