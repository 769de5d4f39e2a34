//! `ec2vmm key ls`.

use ec2vmm_rest_api::{KeyKind, KeyPair, KeyPairList};

use crate::{
    Done,
    client::Call,
    connection::Connection,
    environment::Environment,
    output::{
        self,
        screen::Screen,
        table::{Table, text, whole},
    },
    value::filter::Filter,
};

/// List key pairs
#[derive(Debug, clap::Args)]
pub(crate) struct KeyLs {
    /// Only key pairs that have one of the values, such as key-type=rsa; may be repeated: all must hold
    #[arg(long, short, value_name = "NAME=VALUE[,VALUE...]")]
    filter: Vec<Filter>,
    /// Print the names only
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &KeyLs, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let call = Call::get(&["v1", "key-pairs"]);
    let call = args.filter.iter().fold(call, |call, filter| call.with("filter", &filter.text));
    let found: KeyPairList = client.ask(&call)?;
    if args.json {
        return output::print_json(&found);
    }
    match args.quiet {
        true => output::print(
            found.key_pairs.iter().map(|key| output::printable(&key.name) + "\n").collect::<String>(),
        ),
        false => output::print(table(&found.key_pairs, Screen::stdout(environment.plain))),
    }
}

/// Key pairs as people see them.
pub(super) fn table(key_pairs: &[KeyPair], screen: Screen) -> String {
    let mut table =
        Table::new([whole("NAME"), whole("TYPE"), whole("ID"), text("CREATED"), text("FINGERPRINT")]);
    for key in key_pairs {
        let kind = match key.kind {
            KeyKind::Rsa => "rsa",
            KeyKind::Ed25519 => "ed25519",
        };
        table.row([
            key.name.as_str().into(),
            kind.into(),
            key.key_pair_id.as_str().into(),
            key.creation_time.to_string().into(),
            key.fingerprint.as_str().into(),
        ]);
    }
    table.render(screen)
}
