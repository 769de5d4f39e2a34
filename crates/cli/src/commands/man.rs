//! `ec2vmm man`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory, ValueHint};
use ec2vmm_vmm_api::FailureKind;

use crate::{Done, args::Args, error::Error, output};

/// Print the manual page, or write all of them to a folder
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// Folder to write every page to
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Man) -> Done {
    match &args.dir {
        Some(folder) => write_all(folder),
        None => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Args::command()).render(&mut page);
            rendered.map_err(|error| Error::new(FailureKind::Other, error.to_string()))?;
            output::print(page)
        }
    }
}

fn write_all(folder: &Path) -> Done {
    fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Args::command(), folder)).map_err(
        |error| {
            let message = format!("cannot write manual pages to {}: {error}", folder.display());
            Error::new(FailureKind::Other, message)
        },
    )?;
    Ok(ExitCode::SUCCESS)
}
