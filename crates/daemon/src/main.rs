//! `ec2vmmd`, the control daemon: wiring and process life.
//!
//! It opens the store, takes over the host, serves the socket, and ends in order: what was asked is
//! finished, machines run on. It knows signals, systemd and exit statuses; rules are the cloud's.

mod args;
mod daemon;
mod descriptors;
mod host;
mod listener;
mod log;
mod refusal;
mod service;
mod signals;
mod upgrade;

use std::process::ExitCode;

use clap::Parser;

use crate::{args::Args, daemon::Outcome, refusal::Refusal};

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => refusal.report(),
    }
}

fn run(args: &Args) -> Result<(), Refusal> {
    log::begin(args);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Refusal::Runtime { source })?;
    let outcome = runtime.block_on(daemon::live(args));
    // What still runs has been asked to end, and was waited for.
    runtime.shutdown_timeout(daemon::LEFTOVERS_TIME_MAX);
    match outcome? {
        Outcome::Stopped => Ok(()),
        Outcome::Upgrade(upgrade) => Err(upgrade.exec()),
    }
}
