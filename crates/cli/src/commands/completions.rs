//! `ec2vmm completions`.

use clap::CommandFactory;

use crate::{
    Done,
    args::{Args, Completions},
    output,
};

pub(crate) fn run(args: &Completions) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "ec2vmm", &mut script);
    output::print(script)
}
