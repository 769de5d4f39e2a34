//! `ec2vmm backup`.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::ValueHint;

use crate::{
    Done,
    client::{Broken, Call, Client},
    connection::Connection,
    environment::Environment,
    error::{Error, Trouble, kind_of_path},
    output::{self, bytes},
};

/// Write a copy of the daemon's database to a file, while it works
///
/// It is consistent, and one SQLite file. Volumes and images are not in it.
#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    /// File to write
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Replace FILE if it is there; it stays as it was if the backup fails
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &Backup, environment: &Environment) -> Done {
    if !args.overwrite && args.file.symlink_metadata().is_ok() {
        return Err(Error::astray(Trouble::FileExists, format!("{} is there already", args.file.display()))
            .hint("`--overwrite` replaces it"));
    }
    let client = args.connection.client(environment)?;
    let mut part = args.file.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = write(&client, &part, &args.file, args.overwrite);
    if written.is_err() {
        // What is in the way of that is told by the error that brought us here.
        let _ = fs::remove_file(&part);
    }
    let file = args.file.display().to_string();
    output::print(format!("{}  {}\n", output::printable(&file), bytes(written?)))
}

/// Only a whole backup gets the name.
fn write(client: &Client, part: &Path, file: &Path, overwrite: bool) -> Result<u64, Error> {
    let failed = |error: io::Error| {
        Error::new(kind_of_path(&error), format!("cannot write {}: {error}", file.display()))
            .hint("name another file")
    };
    // It holds everybody's user data.
    let created = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part);
    let mut to = created.map_err(failed)?;
    let written = client.download(&Call::get(&["v1", "backup"]), &mut to).map_err(|broken| match broken {
        Broken::Daemon(error) => error.into(),
        Broken::Write(error) => failed(error),
    })?;
    to.sync_all().map_err(failed)?;
    match overwrite {
        true => fs::rename(part, file),
        false => fs::hard_link(part, file).and_then(|()| fs::remove_file(part)),
    }
    .map_err(failed)?;
    Ok(written)
}
