//! `ec2vmm`: real Linux machines on KVM, from one command.
//!
//! What was typed ([`args`]) becomes what it means ([`commands`]), and that is done. This crate prints,
//! reads the terminal and the environment, and turns whatever goes wrong into a sentence, a hint and an
//! exit status. It never touches KVM, and leaves side effects on the host to `ec2vmm-host`.

mod args;
mod commands;
mod environment;
mod error;
mod output;
mod run;
mod value;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    args::{Args, Command, ImageCommand},
    environment::Environment,
    error::Error,
};

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.command {
        Command::Run(args) => run::run(&args, &Environment::read()),
        Command::Image(ImageCommand::Inspect(args)) => commands::image_inspect::run(&args),
        Command::Types(args) => commands::types::run(&args),
        Command::Completions(args) => commands::completions::run(&args),
        Command::Man(args) => commands::man::run(&args),
    };
    done.unwrap_or_else(|error| error.report())
}

/// What a command comes to: an exit status, or an error to report.
type Done = Result<ExitCode, Error>;
