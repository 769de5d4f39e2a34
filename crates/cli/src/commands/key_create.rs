//! `ec2vmm key create`.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::{ValueEnum, ValueHint};
use ec2vmm_rest_api::{CreateKeyPairRequest, CreatedKeyPair, KeyKind, KeyPair, PrivateKeyFormat};
use ec2vmm_vmm_api::FailureKind;
use hyper::Method;

use crate::{
    Done,
    client::{Call, Client},
    commands::key_ls,
    connection::Connection,
    environment::Environment,
    error::{Error, Trouble},
    output::{self, screen::Screen},
    value::tag::Tag,
};

/// Create a key pair, and write its private half to a file
///
/// The file is readable by its owner only, and is never overwritten. The daemon keeps the public half alone:
/// who loses the file cannot have it again.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyCreate {
    /// Name of the key pair
    name: String,
    /// Kind of key
    #[arg(long = "type", value_name = "TYPE", default_value = "rsa")]
    kind: KindSetting,
    /// Length of an RSA key: 2048 or 4096 [default: 2048]
    #[arg(long, value_name = "N", value_parser = clap::builder::PossibleValuesParser::new(["2048", "4096"]))]
    bits: Option<String>,
    /// How the private half is written: pem for OpenSSH, ppk for PuTTY
    #[arg(long, default_value = "pem")]
    format: FormatSetting,
    /// Where the private half is written [default: NAME.pem or NAME.ppk, here]
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// One more tag; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    tag: Vec<Tag>,
    /// Print JSON (of the public half) and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// The kinds of keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum KindSetting {
    Rsa,
    Ed25519,
}

/// The formats of private keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum FormatSetting {
    Pem,
    Ppk,
}

pub(crate) fn run(args: &KeyCreate, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let request = request(args)?;
    let path = path(args)?;
    // Before the key exists, so that there is no key whose private half cannot be written.
    let file = create(&path)?;
    let created = Call::post(&["v1", "key-pairs"]).json(&request).and_then(|call| client.ask(&call));
    let created: CreatedKeyPair = created.map_err(|error| {
        remove(&path);
        Error::from(error)
    })?;
    if let Err(error) = write(file, &created.private_key) {
        return Err(undo(&client, &path, &created.key_pair, &error));
    }
    match args.json {
        true => output::print_json(&created.key_pair),
        false => {
            let table = key_ls::table(&[created.key_pair], Screen::stdout(environment.plain));
            output::print(format!(
                "{table}\nprivate key  {}\n",
                output::printable(&path.display().to_string())
            ))
        }
    }
}

fn request(args: &KeyCreate) -> Result<CreateKeyPairRequest, Error> {
    if args.kind == KindSetting::Ed25519 && args.bits.is_some() {
        return Err(Error::new(FailureKind::Usage, "ED25519 keys have one length: `--bits` is for RSA"));
    }
    Ok(CreateKeyPairRequest {
        name: args.name.clone(),
        kind: match args.kind {
            KindSetting::Rsa => KeyKind::Rsa,
            KindSetting::Ed25519 => KeyKind::Ed25519,
        },
        bits: args.bits.as_ref().and_then(|bits| bits.parse().ok()),
        format: match args.format {
            FormatSetting::Pem => PrivateKeyFormat::Pem,
            FormatSetting::Ppk => PrivateKeyFormat::Ppk,
        },
        tags: args.tag.iter().map(|tag| (tag.key.clone(), tag.value.clone())).collect(),
    })
}

fn path(args: &KeyCreate) -> Result<PathBuf, Error> {
    if let Some(path) = &args.output {
        return Ok(path.clone());
    }
    if args.name.contains('/') || args.name.starts_with('.') {
        return Err(Error::new(FailureKind::Usage, format!("`{}` makes no file name", args.name))
            .hint("`--output FILE` says where the private half is written"));
    }
    let extension = match args.format {
        FormatSetting::Pem => "pem",
        FormatSetting::Ppk => "ppk",
    };
    Ok(format!("{}.{extension}", args.name).into())
}

fn create(path: &Path) -> Result<File, Error> {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    created.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            Error::astray(Trouble::FileExists, format!("{} is there already", path.display()))
                .hint("`--output FILE` names another file; a private key is never overwritten")
        }
        io::ErrorKind::PermissionDenied => {
            Error::new(FailureKind::Permission, format!("cannot write {}: {error}", path.display()))
        }
        _ => Error::new(FailureKind::BadInput, format!("cannot write {}: {error}", path.display()))
            .hint("`--output FILE` names another file"),
    })
}

fn write(mut file: File, key: &str) -> io::Result<()> {
    file.write_all(key.as_bytes())?;
    file.sync_all()
}

/// A key pair whose private half is lost is of no use to anybody.
fn undo(client: &Client, path: &Path, made: &KeyPair, error: &io::Error) -> Error {
    remove(path);
    let message = format!("cannot write {}: {error}", path.display());
    match client.tell(&Call::new(Method::DELETE, &["v1", "key-pairs", &made.key_pair_id])) {
        Ok(_) => Error::new(FailureKind::BadInput, message).hint("the key pair was deleted again"),
        Err(_) => Error::new(FailureKind::BadInput, message)
            .hint(format!("its private half is lost: `ec2vmm key rm {}`", made.name)),
    }
}

fn remove(path: &Path) {
    // We made it just now, and it is empty or useless. What is in the way of that is told by the error that
    // brought us here.
    let _ = std::fs::remove_file(path);
}
