//! `ec2vmm completions`, and what the scripts call.

use clap::{CommandFactory, ValueEnum};
use clap_complete::{CompleteEnv, env::Shells};
use ec2vmm_vmm_api::FailureKind;

use crate::{Done, args::Args, error::Error, output};

/// Print the completion script of a shell
///
/// It asks this program with each press of the key, which knows the instances, key pairs and images that
/// there are. Such as, in ~/.bashrc: source <(ec2vmm completions bash)
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// Which shell
    shell: Shell,
}

/// Shells that can be served.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Shell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

pub(crate) fn run(args: &Completions) -> Done {
    let name = args.shell.to_possible_value();
    let name = name.as_ref().map_or("", |value| value.get_name());
    let shells = Shells::builtins();
    let shell = shells
        .completer(name)
        .ok_or_else(|| Error::new(FailureKind::Other, format!("there are no completions for {name}")))?;
    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)
        .map_err(|error| Error::new(FailureKind::Other, error.to_string()))?;
    output::print(script)
}

/// Answers the script of a shell, and says whether one has asked.
pub(crate) fn answer() -> bool {
    let here = std::env::current_dir().ok();
    let completed = CompleteEnv::with_factory(Args::command)
        .var(VARIABLE)
        .try_complete(std::env::args_os(), here.as_deref());
    // A shell that asks in a way that is not understood gets no candidates.
    completed.unwrap_or(std::env::var_os(VARIABLE).is_some())
}

const VARIABLE: &str = "EC2VMM_COMPLETE";
const PROGRAM: &str = "ec2vmm";
