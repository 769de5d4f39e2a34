//! `ec2vmm key import`.

use std::path::PathBuf;

use clap::ValueHint;
use ec2vmm_rest_api::{ImportKeyPairRequest, KeyPair};
use ec2vmm_vmm_api::FailureKind;

use crate::{
    Done,
    client::Call,
    commands::key_ls,
    connection::Connection,
    environment::Environment,
    error::Error,
    files,
    output::{self, screen::Screen},
    value::tag::Tag,
};

/// Import the public half of a key pair that you have
#[derive(Debug, clap::Args)]
pub(crate) struct KeyImport {
    /// Name to give it
    name: String,
    /// File with the public key, as ssh-keygen writes it
    #[arg(value_name = "FILE.pub", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// One more tag; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    tag: Vec<Tag>,
    /// Print JSON and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &KeyImport, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let bytes = files::read(&args.file, PUBLIC_KEY_BYTES_MAX, "a public key")?;
    let file = args.file.display();
    let public_key = String::from_utf8(bytes).map_err(|_| {
        Error::new(FailureKind::BadInput, format!("{file} is not a public key: it is not text"))
    })?;
    if public_key.contains("PRIVATE KEY") {
        return Err(Error::new(FailureKind::BadInput, format!("{file} is a private key"))
            .hint(format!("its public half is wanted: `ssh-keygen -y -f {file} > {file}.pub`")));
    }
    let tags = args.tag.iter().map(|tag| (tag.key.clone(), tag.value.clone())).collect();
    let request = ImportKeyPairRequest { name: args.name.clone(), public_key, tags };
    let imported: KeyPair = client.ask(&Call::post(&["v1", "key-pair-imports"]).json(&request)?)?;
    match args.json {
        true => output::print_json(&imported),
        false => output::print(key_ls::table(&[imported], Screen::stdout(environment.plain))),
    }
}

/// What the contract takes.
const PUBLIC_KEY_BYTES_MAX: usize = 16 * 1024;
