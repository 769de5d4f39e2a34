//! `ec2vmm`: real Linux machines on KVM, from one command.
//!
//! What was typed ([`args`]) becomes what it means ([`commands`]), and that is done. This crate prints,
//! reads the terminal and the environment, and turns whatever goes wrong into a sentence, a hint and an
//! exit status. It never touches KVM, and leaves side effects on the host to `ec2vmm-host`.

mod args;
mod client;
mod clock;
mod commands;
mod complete;
mod connection;
mod console;
mod environment;
mod error;
mod files;
mod names;
mod output;
mod run;
mod value;
mod waiting;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    args::{Args, Command, ImageCommand, KeyCommand, MachineCommand},
    environment::Environment,
    error::Error,
};

fn main() -> ExitCode {
    if commands::completions::answer() {
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    run(&args.command, &Environment::read()).unwrap_or_else(|error| error.report())
}

fn run(command: &Command, environment: &Environment) -> Done {
    match command {
        Command::Run(args) => run::run(args, environment),
        Command::Launch(args) => commands::launch::run(args, environment),
        Command::Ls(args) => commands::ls::run(args, environment),
        Command::Show(args) => commands::show::run(args, environment),
        Command::Start(args) => commands::start::run(args, environment),
        Command::Stop(args) => commands::stop::run(args, environment),
        Command::Reboot(args) => commands::reboot::run(args, environment),
        Command::Terminate(args) => commands::terminate::run(args, environment),
        Command::Modify(args) => commands::modify::run(args, environment),
        Command::Wait(args) => commands::wait::run(args, environment),
        Command::Console(args) => commands::console::run(args, environment),
        Command::Events(args) => commands::events::run(args, environment),
        Command::Tag(args) => commands::tag::run(args, environment),
        Command::Untag(args) => commands::untag::run(args, environment),
        Command::Cost(args) => commands::cost::run(args, environment),
        Command::Top(args) => commands::top::run(args, environment),
        Command::Key(KeyCommand::Create(args)) => commands::key_create::run(args, environment),
        Command::Key(KeyCommand::Import(args)) => commands::key_import::run(args, environment),
        Command::Key(KeyCommand::Ls(args)) => commands::key_ls::run(args, environment),
        Command::Key(KeyCommand::Rm(args)) => commands::key_rm::run(args, environment),
        Command::Image(ImageCommand::Register(args)) => commands::image_register::run(args, environment),
        Command::Image(ImageCommand::Ls(args)) => commands::image_ls::run(args, environment),
        Command::Image(ImageCommand::Rm(args)) => commands::image_rm::run(args, environment),
        Command::Image(ImageCommand::Inspect(args)) => commands::image_inspect::run(args, environment),
        Command::Machine(MachineCommand::Snapshot(args)) => commands::machine_snapshot::run(args),
        Command::Machine(MachineCommand::Merge(args)) => commands::machine_merge::run(args),
        Command::Types(args) => commands::types::run(args, environment),
        Command::Status(args) => commands::status::run(args, environment),
        Command::Backup(args) => commands::backup::run(args, environment),
        Command::Completions(args) => commands::completions::run(args),
        Command::Man(args) => commands::man::run(args),
    }
}

/// What a command comes to: an exit status, or an error to report.
type Done = Result<ExitCode, Error>;
