//! `ec2vmm image register`.

use std::path::{Path, PathBuf};

use clap::ValueHint;
use ec2vmm_rest_api::{DiskFormat, Image, RegisterImageRequest};
use ec2vmm_vmm_api::{FailureKind, config::Format};

use crate::{
    Done,
    client::Call,
    commands::image_ls,
    connection::Connection,
    environment::Environment,
    error::Error,
    output::{self, screen::Screen},
    value::{disk::format, tag::Tag},
};

/// Register a disk as an image that instances can be launched from
///
/// The file stays where it is, and must not change from then on.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageRegister {
    /// The disk: a raw or qcow2 file of the daemon's host, or the name of one in the daemon's folder `images`
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Name to give it, such as debian-12
    #[arg(long)]
    name: String,
    /// Who logs in with the key pair
    #[arg(long, value_name = "USER", default_value = "root")]
    login_user: String,
    /// How FILE holds the disk: raw or qcow2 [default: qcow2 if its name ends so, else raw]
    #[arg(long, value_parser = format)]
    format: Option<Format>,
    /// What it is, in words
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// Id that it shall have, where other code names it: ami-... [default: a new one]
    #[arg(long, value_name = "AMI")]
    id: Option<String>,
    /// One more tag; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    tag: Vec<Tag>,
    /// Print JSON and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &ImageRegister, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let named_qcow2 = args.file.extension().is_some_and(|extension| extension == "qcow2");
    let format = args.format.unwrap_or(if named_qcow2 { Format::Qcow2 } else { Format::Raw });
    let request = RegisterImageRequest {
        name: args.name.clone(),
        description: args.description.clone(),
        file: file(&args.file)?,
        format: match format {
            Format::Raw => DiskFormat::Raw,
            Format::Qcow2 => DiskFormat::Qcow2,
        },
        login_user: args.login_user.clone(),
        image_id: args.id.clone(),
        tags: args.tag.iter().map(|tag| (tag.key.clone(), tag.value.clone())).collect(),
    };
    let image: Image = client.ask(&Call::post(&["v1", "images"]).json(&request)?)?;
    match args.json {
        true => output::print_json(&image),
        false => output::print(image_ls::table(&[image], Screen::stdout(environment.plain))),
    }
}

/// The daemon has another working directory. A bare name that is not here is one in its own folder.
fn file(path: &Path) -> Result<String, Error> {
    let is_bare = path.components().count() == 1 && !path.exists();
    let path = match is_bare {
        true => path.to_owned(),
        false => std::path::absolute(path)
            .map_err(|error| Error::new(FailureKind::BadInput, format!("{}: {error}", path.display())))?,
    };
    path.into_os_string().into_string().map_err(|path| {
        let message = format!("the name of {} is not UTF-8", Path::new(&path).display());
        Error::new(FailureKind::BadInput, message).hint("rename the file")
    })
}
