//! All that a machine process does: as a whole on tiny guests, and in [`parts`] where a guest would have to be
//! a driver.

mod parts;

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread,
};

use ec2vmm_host::{
    disks::{Disk, OpenLayer},
    machine::{MemoryBackend, Restore},
    sandbox::empty_network,
};
use ec2vmm_vmm_api::config::{Format, RateLimit};

use crate::{
    born::{self, Kept, paged},
    coverage::Coverage,
    guests, machine, tracer,
};

pub(crate) fn run_all(coverage: &mut Coverage) {
    let network = empty_network().unwrap();
    everything(coverage, &network);
    many_who_say_nothing(coverage, &network);
    a_crash(coverage, &network);
    reboots(coverage, &network);
    a_disk_that_comes_and_goes(coverage, &network);
    a_pause_and_snapshots(coverage, &network);
    memory_that_is_brought_in(coverage, &network);
    parts::run_all(coverage);
}

/// Runs a machine and watches it, while `drive` is its owner.
fn watch(coverage: &mut Coverage, parts: ec2vmm_host::machine::Parts, drive: impl FnOnce(&Kept) + Send) {
    let (newborn, machine) = Kept::newborn(parts);
    let machine = &machine;
    thread::scope(|scope| {
        let begun = || {
            newborn.tell().unwrap();
            scope.spawn(move || drive(machine));
        };
        tracer::follow(machine.pid as i32, begun, |call| coverage.see(call));
    });
}

fn control(machine: &Kept, request: &str) -> String {
    machine::exchange(UnixStream::connect(machine.path("control")).unwrap(), request, &[])
}

/// Asks for what is to succeed, with descriptors.
fn ask(machine: &Kept, what: &str, body: &str, descriptors: &[BorrowedFd<'_>]) {
    let length = body.len();
    let head = format!("{what} HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let control = UnixStream::connect(machine.path("control")).unwrap();
    let answer = machine::exchange(control, &(head + body), descriptors);
    assert!(answer.starts_with("HTTP/1.1 20"), "{what}: {answer}");
}

fn power(machine: &Kept, action: &str) {
    let body = format!("{{\"action\":\"{action}\"}}");
    let head =
        "PUT /machine/power HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Type: application/json";
    let answer = control(machine, &format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

/// Disks by io_uring and by threads, the console, the control socket, a power-off.
fn everything(coverage: &mut Coverage, network: &OwnedFd) {
    let mut parts = born::parts(born::full(network), guests::echo(), None);
    for bytes in [1 << 20, 10_000] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let layers = vec![OpenLayer { file, format: Format::Raw }];
        parts.disks.push(Disk {
            layers,
            read_only: false,
            scratch: true,
            serial: "disk".into(),
            queues: None,
            rate_limit: RateLimit::default(),
        });
    }
    watch(coverage, parts, |machine| {
        machine.wait_until_running();
        let mut console = UnixStream::connect(machine.path("console")).unwrap();
        console.write_all(b"abc").unwrap();
        console.read_exact(&mut [0; 3]).unwrap();
        let get = "GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n";
        assert!(control(machine, get).contains("block0"));
        console.write_all(b"q").unwrap();
    });
}

/// Clients who hold all places: the next one is let in a while later.
fn many_who_say_nothing(coverage: &mut Coverage, network: &OwnedFd) {
    watch(coverage, born::parts(born::full(network), guests::idle(), None), |machine| {
        machine.wait_until_running();
        let begin = |_| {
            let mut stream = UnixStream::connect(machine.path("control")).unwrap();
            stream.write_all(b"GET /machine HTTP/1.1\r\n").unwrap();
            stream
        };
        let held: Vec<UnixStream> = (0..9).map(begin).collect();
        power(machine, "power_off");
        drop(held);
    });
}

fn a_crash(coverage: &mut Coverage, network: &OwnedFd) {
    watch(coverage, born::parts(born::full(network), guests::triple_fault(), None), |_| {});
}

fn reboots(coverage: &mut Coverage, network: &OwnedFd) {
    watch(coverage, born::parts(born::full(network), guests::spin(), None), |machine| {
        machine.wait_until_running();
        for _ in 0..2 {
            power(machine, "reset");
        }
        power(machine, "power_off");
    });
}

/// One that the guest is told of, that grows, and that the guest lets go of.
fn a_disk_that_comes_and_goes(coverage: &mut Coverage, network: &OwnedFd) {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    watch(coverage, born::parts(born::full(network), guests::hot_plug(), None), |machine| {
        machine.wait_until_running();
        let mut console = UnixStream::connect(machine.path("console")).unwrap();
        let attach = r#"{"id":"data","layers":["raw"],"serial":"data"}"#;
        ask(machine, "POST /machine/disks", attach, &[disk.as_fd()]);
        console.read_exact(&mut [0; 2]).unwrap();
        ask(machine, "PUT /machine/disks/data/size", r#"{"bytes":2097152}"#, &[]);
        ask(machine, "DELETE /machine/disks/data", "", &[]);
        console.read_exact(&mut [0; 2]).unwrap();
        power(machine, "power_off");
    });
}

/// A machine stands still and goes on; it is copied, once whole and once what has changed; the copy goes on,
/// and boots anew.
fn a_pause_and_snapshots(coverage: &mut Coverage, network: &OwnedFd) {
    let [state, memory, later_state, later_memory] = [(); 4].map(|()| tempfile::tempfile().unwrap());
    watch(coverage, born::parts(born::full(network), guests::echo(), None), |machine| {
        machine.wait_until_running();
        ask(machine, "PUT /machine/pause", "", &[]);
        ask(machine, "PUT /machine/resume", "", &[]);
        let files = [state.as_fd(), memory.as_fd()];
        ask(machine, "POST /machine/snapshot", r#"{"track":true}"#, &files);
        let files = [later_state.as_fd(), later_memory.as_fd()];
        ask(machine, "POST /machine/snapshot", r#"{"kind":"difference"}"#, &files);
        power(machine, "power_off");
    });
    let mut parts = born::parts(born::full(network), guests::echo(), None);
    parts.restore = Some(Restore {
        state: later_state,
        memory: vec![memory, later_memory],
        backend: MemoryBackend::Mapped,
    });
    watch(coverage, parts, |machine| {
        machine.wait_until_running();
        power(machine, "reset");
        power(machine, "power_off");
    });
}

/// Once with all of it, and written down; once ahead, to a reset; and once to an end
/// because it is lost, by which a snapshot is given up.
fn memory_that_is_brought_in(coverage: &mut Coverage, network: &OwnedFd) {
    let [state, memory, working_set] = [(); 3].map(|()| tempfile::tempfile().unwrap());
    let machine = Kept::start(born::parts(born::full(network), guests::echo(), None));
    ask(&machine, "POST /machine/snapshot", "{}", &[state.as_fd(), memory.as_fd()]);
    drop(machine);
    let restored = |prefetch: Option<&File>, record: Option<&File>| {
        let mut parts = born::parts(born::full(network), guests::echo(), None);
        parts.restore = Some(paged(&state, &memory, prefetch, record));
        parts
    };
    let [copied_state, copied_memory] = [(); 2].map(|()| tempfile::tempfile().unwrap());
    let files = [copied_state.as_fd(), copied_memory.as_fd()];
    watch(coverage, restored(None, Some(&working_set)), |machine| {
        machine.wait_until_running();
        ask(machine, "POST /machine/snapshot", "{}", &files);
        power(machine, "power_off");
    });
    watch(coverage, restored(Some(&working_set), None), |machine| {
        machine.wait_until_running();
        power(machine, "reset");
        power(machine, "power_off");
    });
    watch(coverage, restored(None, None), |machine| {
        machine.wait_until_running();
        let mut console = UnixStream::connect(machine.path("console")).unwrap();
        console.write_all(b"a").unwrap();
        // The guest has all that it needs, and does not wait itself.
        console.read_exact(&mut [0]).unwrap();
        memory.set_len(0).unwrap();
        let body = "{}";
        let head =
            "POST /machine/snapshot HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Length: 2\r\n\r\n";
        let control = UnixStream::connect(machine.path("control")).unwrap();
        let answer = machine::exchange(control, &format!("{head}{body}"), &files);
        assert!(answer.starts_with("HTTP/1.1 409"), "{answer}");
    });
}
