//! The console on a terminal: raw while the machine runs, as it was before when it has ended.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    process::Command,
};

use rustix::{
    pty::{OpenptFlags, openpt, ptsname, unlockpt},
    termios::{LocalModes, Termios, tcgetattr},
};

use crate::{
    machine::{patience, poll},
    place,
    transcript::Transcript,
};

#[test]
#[ignore = "boots Linux"]
fn keys_and_modes() {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let terminal = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let modes = || tcgetattr(&terminal).unwrap();
    let before = described(&modes());

    let mut controller = File::from(controller);
    let screen = Transcript::of(controller.try_clone().unwrap());
    let shown_times = |text: &str, times| {
        let enough = |seen: &str| (seen.matches(text).count() >= times).then_some(());
        screen.wait(0, patience(), enough).unwrap_or_else(|missing| {
            panic!("{text:?}: {missing}; on the terminal: {}", screen.text_from(0))
        });
    };
    let shown = |text: &str| shown_times(text, 1);
    let mut command = Command::new("setsid");
    command
        .args(["--ctty", "--wait"])
        .arg(place::program("ec2vmm"))
        .arg("run")
        .arg(place::image("minimal.raw"));
    let stream = || terminal.try_clone().unwrap();
    let mut child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
    shown("minimal ready");
    assert!(!modes().local_modes.contains(LocalModes::ICANON), "the terminal is raw");
    shown("~# ");
    // The guest's keyboard: even its Ctrl-C. What it shall end says itself that it is there: a shell
    // that is about to start it would take the signal and start it all the same.
    controller.write_all(b"sh -c 'echo a\"\"sleep; exec sleep 1000'\r").unwrap();
    shown("asleep");
    controller.write_all(b"\x03").unwrap();
    // The signal discards what was typed before the shell is back.
    shown_times("~# ", 2);
    controller.write_all(b"echo st''ill here\r").unwrap();
    shown("still here");
    controller.write_all(b"\x01h").unwrap();
    shown("Ctrl-A x");
    assert!(child.try_wait().unwrap().is_none());
    controller.write_all(b"\x01x").unwrap();
    let status = poll("it ends", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert_eq!(described(&modes()), before, "the terminal's modes");
}

fn described(modes: &Termios) -> String {
    format!("{modes:?}")
}
