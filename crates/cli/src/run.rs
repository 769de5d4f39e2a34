//! `ec2vmm run`: what it means ([`plan`]), made real ([`launch`]), and watched until it ends ([`session`]).

mod console_file;
mod ending;
mod events;
mod launch;
mod plan;
mod power_button;
mod restore;
mod session;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use ec2vmm_vmm_api::{Event, Exit, Failure};

use self::{ending::Ending, plan::Plan};
use crate::{
    Done,
    args::Run,
    console::stream::Stream,
    environment::Environment,
    error::{Error, failed_to},
    output,
};

pub(crate) fn run(args: &Run, environment: &Environment) -> Done {
    // Other events count from the birth of the machine process; without one there are no others.
    let mut born = Instant::now();
    let ending = Plan::new(args, environment).and_then(|plan| session::run(&plan, &mut born));
    if args.json {
        let told = tell_end(born, &ending);
        // What went wrong first is what people want to read.
        if ending.is_ok() {
            told?;
        }
    }
    match ending? {
        Ending::PowerOff => Ok(ExitCode::SUCCESS),
        Ending::Signal(signal) => Ok(ExitCode::from(SIGNAL_BASE.saturating_add(signal))),
    }
}

/// The last line with `--json`, whatever happened.
fn tell_end(born: Instant, ending: &Result<Ending, Error>) -> Result<(), Error> {
    let (exit, failure): (Exit, Option<Failure>) = match ending {
        Ok(Ending::PowerOff) => (Exit::PowerOff, None),
        Ok(Ending::Signal(_)) => (Exit::Abandoned, None),
        Err(Error::Failed(failure)) => (Exit::Failed(failure.kind), Some(failure.clone())),
        // Only the first comes from a machine.
        Err(Error::OutputClosed | Error::Daemon(_) | Error::Astray { .. } | Error::Told(_)) => return Ok(()),
    };
    let us = u64::try_from(born.elapsed().as_micros()).unwrap_or(u64::MAX);
    let told = serde_json::to_string(&Event::Ended { us, exit, failure })
        .map_err(std::io::Error::from)
        .and_then(|line| say(&(line + "\n")));
    told.map_err(failed_to("write to standard output"))
}

/// A reader that does not read must not hold up an ending.
fn say(line: &str) -> std::io::Result<()> {
    let mut stdout = Stream::stdout()?;
    stdout.write(line.as_bytes())?;
    stdout.flush_until(Instant::now() + PATIENCE)
}

const PATIENCE: Duration = Duration::from_secs(3);

/// What shells add to the number of the signal that ended a program.
const SIGNAL_BASE: u8 = 128;

const _: () = assert!(output::CLOSED == SIGNAL_BASE + 13);
