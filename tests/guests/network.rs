//! Taps and vsock. The tests have a network namespace to themselves: the lab's, or one that `scripts/test`
//! makes.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    thread,
};

use crate::{
    hard_kills::run,
    machine::{Machine, Plan, poll},
    minimal::{power_off, ready},
    place, ssh,
    tap::Tap,
};

#[test]
#[ignore = "boots Linux"]
fn a_tap() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
    let _tap = Tap::make(TAP, HOST, &[]);
    let plan = Plan::boot(&place::image("minimal.raw")).args(["--net", &format!("tap={TAP}"), "--key"]);
    let mut machine = ready(plan.arg(key.with_extension("pub")));
    // It looks for DHCP, and would take the address away again.
    machine.sh("until killall udhcpc; do usleep 50000; done; ip addr add 10.99.7.2/24 dev eth0 && ip link set eth0 up");
    poll("the guest answers", || {
        Command::new("ping")
            .args(["-c", "1", "-W", "1", GUEST])
            .output()
            .unwrap()
            .status
            .success()
            .then_some(())
    });
    run(Command::new("ping").args(["-c", "20", "-i", "0.01", "-W", "5", "-s", "1400", GUEST]));
    assert_eq!(ssh(&key, "uname -n"), "minimal\n");
    a_busy_tap_is_refused();
    large_transfers(&mut machine);
    power_off(machine);
}

fn ssh(key: &Path, command: &str) -> String {
    run(&mut ssh::command(key, GUEST, &[], command))
}

fn a_busy_tap_is_refused() {
    let second = Plan::boot(&place::image("minimal.raw")).args(["--net", &format!("tap={TAP}")]).start();
    assert_eq!(second.end(), 24);
    let none = Plan::boot(&place::image("minimal.raw")).args(["--net", "tap=ec2vmmnone"]).start();
    assert_eq!(none.end(), 23);
}

/// To the guest, and back again.
fn large_transfers(machine: &mut Machine) {
    let sent = noise(48 << 20);
    machine.sh("rm -f /tmp/came; (nc -l -p 5000 >/tmp/came; echo >/tmp/done) & true");
    let mut stream = poll("the guest listens", || TcpStream::connect((GUEST, 5000)).ok());
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
    machine.sh("until [ -e /tmp/done ]; do usleep 50000; done");
    let listener = TcpListener::bind((HOST, 5001)).unwrap();
    let reader = thread::spawn(move || {
        let mut came = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut came).map(|_| came)
    });
    machine.sh(&format!("nc {HOST} 5001 </tmp/came"));
    assert!(reader.join().unwrap().unwrap() == sent, "what came back is not what was sent");
}

/// Bytes without a pattern (xorshift64).
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(bytes).collect()
}

#[test]
#[ignore = "boots Linux"]
fn vsock() {
    let folder = tempfile::tempdir().unwrap();
    let tool = folder.path().join("tool");
    let mut program = fs::read(place::program("guest-tool")).unwrap();
    program.resize(program.len().next_multiple_of(512), 0);
    fs::write(&tool, program).unwrap();
    let plan = Plan::boot(&place::image("minimal.raw"));
    let socket = plan.path("vsock");
    let plan = plan.arg("--vsock").arg(&socket).arg("--disk").arg(format!("{},readonly", tool.display()));
    let mut machine = ready(plan);
    machine.sh("cat /dev/vdb >/tmp/tool && chmod +x /tmp/tool");

    // Nobody listens: closed without an answer.
    assert_eq!(ask(&socket, "CONNECT 4999").1, "");
    machine
        .sh("/tmp/tool listen 5000 >/tmp/said 2>&1 & until grep listening /tmp/said; do usleep 50000; done");
    let (mut stream, answer) = ask(&socket, "CONNECT 5000");
    assert!(answer.starts_with("OK "), "{answer:?}");
    let sent = noise(8 << 20);
    let came = thread::scope(|scope| {
        let mut writer = stream.get_ref().try_clone().unwrap();
        let sent = &sent;
        scope.spawn(move || {
            writer.write_all(sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut came = Vec::new();
        stream.read_to_end(&mut came).unwrap();
        came
    });
    assert!(came == sent, "{} bytes came back, or others than were sent", came.len());
    machine.sh("until grep 'sent back 8388608' /tmp/said; do usleep 50000; done");

    // Nobody on the host listens.
    assert_ne!(machine.try_sh("/tmp/tool connect 5001 1").0, 0);
    let echo = thread::spawn(move || {
        let (mut stream, answer) = ask(&socket, "LISTEN 5001");
        assert!(answer.starts_with("OK "), "{answer:?}");
        let mut writer = stream.get_ref().try_clone().unwrap();
        let count = std::io::copy(&mut stream, &mut writer).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
        count
    });
    // The host may take a moment to listen.
    machine.sh("until /tmp/tool connect 5001 4000000; do usleep 200000; done");
    assert_eq!(echo.join().unwrap(), 4_000_000);
    power_off(machine);
}

/// Asks the bridge; gives the stream and the line of its answer.
fn ask(socket: &Path, request: &str) -> (BufReader<UnixStream>, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut stream = BufReader::new(stream);
    let mut answer = String::new();
    stream.read_line(&mut answer).unwrap();
    (stream, answer)
}

const TAP: &str = "ec2vmmtest0";
const HOST: &str = "10.99.7.1";
const GUEST: &str = "10.99.7.2";
