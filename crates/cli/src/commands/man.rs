//! `ec2vmm man`.

use std::{fs, path::Path, process::ExitCode};

use clap::CommandFactory;
use ec2vmm_vmm_api::FailureKind;

use crate::{
    Done,
    args::{Args, Man},
    error::Error,
    output,
};

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
