//! `ec2vmm console`.

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use clap_complete::ArgValueCompleter;
use ec2vmm_rest_api::{CONSOLE_PROTOCOL, ConsoleOutput, Instance, InstanceState};
use rustix::{io::Errno, net::RecvFlags};

use crate::{
    Done,
    client::{Call, Client, Error as ClientError},
    complete,
    connection::Connection,
    console::attach::{Attached, Left},
    environment::Environment,
    error::{Error, failed_to},
    names, output,
};

/// Show what an instance's serial console has shown, or type on it
///
/// Shows the end of it, at most 64 KiB since the last start. That outlives the machine.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct ConsoleArgs {
    /// Instance: its id, the beginning of its id, or its Name tag
    #[arg(value_name = "ID", add = ArgValueCompleter::new(complete::instances))]
    instance: String,
    /// Go on with what it shows from now on, until it stops or you interrupt
    #[arg(long, short, conflicts_with_all = ["attach", "json"])]
    follow: bool,
    /// Make this terminal its serial console: what is typed goes to the guest, Ctrl-A x leaves
    #[arg(long, short, conflicts_with = "json")]
    attach: bool,
    /// Print JSON, in which the output is base64
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &ConsoleArgs, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let id = names::resolve(&client, &args.instance)?;
    if args.follow || args.attach {
        return stay(&client, &id, args.attach);
    }
    let shown = shown(&client, &id)?;
    match args.json {
        true => output::print_json(&shown),
        false => output::print(decode(&shown)?),
    }
}

fn shown(client: &Client, id: &str) -> Result<ConsoleOutput, ClientError> {
    client.ask(&Call::get(&["v1", "instances", id, "console"]))
}

fn decode(shown: &ConsoleOutput) -> Result<Vec<u8>, ClientError> {
    BASE64_STANDARD
        .decode(&shown.output)
        .map_err(|error| ClientError::Nonsense(format!("console output: {error}")))
}

/// Stays on the line, over restarts of the daemon, until the machine ends or somebody leaves.
fn stay(client: &Client, id: &str, typed: bool) -> Done {
    // What cannot be had is said before the terminal is taken.
    let (mut line, mut said) = open(client, id)?;
    let before = decode(&shown(client, id)?)?;
    hear_what_came(&line, &mut said, before.len())?;
    let mut attached = Attached::begin(typed)?;
    if attached.is_keyboard() {
        attached.show(b"Ctrl-A x leaves, Ctrl-A h lists the keys\r\n")?;
    }
    let before = if typed { last_lines(&before) } else { &before };
    attached.show(before)?;
    attached.show(without_overlap(before, &said))?;
    let left = loop {
        let begun = Instant::now();
        let left = attached.follow(&line)?;
        if left != Left::LineEnded || begun.elapsed() < LINE_TIME_MIN {
            break left;
        }
        match open_again(client, id) {
            Some((next, said)) => {
                line = next;
                attached.show(&said)?;
            }
            None => break left,
        }
    };
    attached.end()?;
    match left {
        Left::ByKey => Ok(ExitCode::SUCCESS),
        Left::LineEnded => {
            // With standard error closed there is nobody to tell.
            let _ = writeln!(io::stderr().lock(), "ec2vmm: the console of {id} has ended");
            Ok(ExitCode::SUCCESS)
        }
        Left::Signal(signal) => Ok(ExitCode::from(SIGNAL_BASE.saturating_add(signal))),
        Left::OutputClosed => Err(Error::OutputClosed),
    }
}

fn open(client: &Client, id: &str) -> Result<(OwnedFd, Vec<u8>), ClientError> {
    let call = Call::get(&["v1", "instances", id, "console", "stream"]);
    let (line, said) = client.upgrade(&call, CONSOLE_PROTOCOL)?;
    Ok((line, said.to_vec()))
}

/// A line ends with the machine, or with the daemon, which then comes back.
fn open_again(client: &Client, id: &str) -> Option<(OwnedFd, Vec<u8>)> {
    let begun = Instant::now();
    while begun.elapsed() < ABSENCE_MAX {
        client.pause(ABSENCE_PAUSE);
        match client.ask::<Instance>(&Call::get(&["v1", "instances", id])) {
            Ok(instance) if instance.state == InstanceState::Running => return open(client, id).ok(),
            Ok(_) => return None,
            Err(error) if error.is_absence() => {}
            Err(_) => return None,
        }
    }
    None
}

/// What has come meanwhile, of which some may have been shown too.
fn hear_what_came(line: &OwnedFd, said: &mut Vec<u8>, at_most: usize) -> Result<(), Error> {
    let mut piece = [0; 4096];
    while said.len() < at_most {
        match rustix::net::recv(line, &mut piece, RecvFlags::DONTWAIT) {
            // That it has ended is noticed where it is followed.
            Ok((_, 0)) | Err(Errno::AGAIN) => break,
            Ok((_, came)) => said.extend(piece.get(..came).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed_to("read the console")(errno.into())),
        }
    }
    Ok(())
}

/// The line was opened before it was asked what had been shown, so that nothing is missed; what is in both is
/// shown once.
fn without_overlap<'a>(before: &[u8], said: &'a [u8]) -> &'a [u8] {
    let longest = said.len().min(before.len());
    let overlap =
        (1..=longest).rev().find(|&length| said.get(..length).is_some_and(|head| before.ends_with(head)));
    said.get(overlap.unwrap_or(0)..).unwrap_or_default()
}

/// Enough to see where the guest is.
fn last_lines(shown: &[u8]) -> &[u8] {
    let ends = shown.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let from = ends.map(|(at, _)| at + 1).nth(LINES_SHOWN).unwrap_or(0);
    shown.get(from..).unwrap_or_default()
}

const AFTER_HELP: &str = "\
Keys with --attach, where standard input is a terminal:
  Ctrl-A x       leave: the instance runs on
  Ctrl-A h       list these keys
  Ctrl-A Ctrl-A  send one Ctrl-A to the guest (also Ctrl-A a)";
const LINES_SHOWN: usize = 10;
/// A line that ends sooner has nobody at the other end.
const LINE_TIME_MIN: Duration = Duration::from_millis(500);
const ABSENCE_MAX: Duration = Duration::from_secs(30);
const ABSENCE_PAUSE: Duration = Duration::from_millis(250);
/// What shells add to the number of the signal that ended a program.
const SIGNAL_BASE: u8 = 128;

#[cfg(test)]
mod tests {
    use super::{last_lines, without_overlap};

    #[test]
    fn what_is_in_both_is_shown_once() {
        for (before, said, rest) in [
            ("login: ", "", ""),
            ("login: ", "in: root", "root"),
            ("login: ", "login: root", "root"),
            ("login: ", "other", "other"),
            ("", "new", "new"),
            ("aaa", "aa", ""),
        ] {
            assert_eq!(
                without_overlap(before.as_bytes(), said.as_bytes()),
                rest.as_bytes(),
                "{before} {said}"
            );
        }
    }

    #[test]
    fn the_last_lines() {
        let shown: String = (0..20).map(|line| format!("{line}\r\n")).collect::<String>() + "login: ";
        let last = String::from_utf8(last_lines(shown.as_bytes()).to_vec()).unwrap();
        assert!(last.starts_with("10\r\n") && last.ends_with("19\r\nlogin: "), "{last:?}");
        assert_eq!(last_lines(b"short"), b"short");
        assert_eq!(last_lines(b""), b"");
    }
}
