//! What start, stop, reboot and terminate have in common: some instances, one request for each.

use ec2vmm_rest_api::StateChange;

use clap_complete::ArgValueCompleter;

use crate::{
    Done,
    client::{Call, Client},
    complete,
    connection::Connection,
    environment::Environment,
    error::Error,
    names,
    output::{
        self,
        screen::{Screen, state_style},
        state_name,
        table::{Cell, Table, whole},
    },
    value::duration::Span,
    waiting::{self, Goal},
};

/// Which instances, and whether to wait.
#[derive(Debug, clap::Args)]
pub(crate) struct Targets {
    /// Instances: ids, beginnings of ids, or Name tags
    #[arg(value_name = "ID", required = true, add = ArgValueCompleter::new(complete::instances))]
    instances: Vec<String>,
    /// Wait until it is so
    #[arg(long)]
    wait: bool,
    /// Wait at most so long: 30s, 2m, 1h30m
    #[arg(long, value_name = "TIME", requires = "wait")]
    timeout: Option<Span>,
    /// Print JSON and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// A verb.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verb {
    /// As the path has it.
    pub(super) name: &'static str,
    /// What `--wait` waits for.
    pub(super) goal: Goal,
    /// What comes to the same if it is asked for twice is asked for once more where no answer came.
    pub(super) repeatable: bool,
}

/// Asks for each; where the daemon refuses one, the others still have their turn.
pub(super) fn run(targets: &Targets, verb: Verb, force: bool, environment: &Environment) -> Done {
    let client = targets.connection.client(environment)?;
    let ids = names::resolve_all(&client, &targets.instances)?;
    let mut changes: Vec<StateChange> = Vec::new();
    let mut failed = None;
    for id in &ids {
        match ask(&client, id, verb, force) {
            Ok(change) => changes.push(change),
            Err(error) => {
                let error = Error::from(error);
                error.report();
                failed = failed.or(Some(error.code()));
            }
        }
    }
    if !targets.json && !changes.is_empty() {
        output::print(table(&changes, Screen::stdout(environment.plain)))?;
    }
    let waited = match targets.wait && !changes.is_empty() {
        true => {
            let ids: Vec<String> = changes.iter().map(|change| change.instance_id.clone()).collect();
            waiting::wait(&client, &ids, verb.goal, targets.timeout, environment.plain).map(|_| ())
        }
        false => Ok(()),
    };
    if targets.json {
        output::print_json(&changes)?;
    }
    waited?;
    match failed {
        Some(code) => Err(Error::Told(code)),
        None => Ok(std::process::ExitCode::SUCCESS),
    }
}

fn ask(client: &Client, id: &str, verb: Verb, force: bool) -> Result<StateChange, crate::client::Error> {
    let call = Call::post(&["v1", "instances", id, verb.name]);
    let call = if force { call.with("force", "true") } else { call };
    if verb.repeatable { client.insist(&call) } else { client.ask(&call) }
}

fn table(changes: &[StateChange], screen: Screen) -> String {
    let mut table = Table::new([whole("ID"), whole("WAS"), whole("IS")]);
    for change in changes {
        let cell = |state| Cell::styled(state_name(state), state_style(state));
        table.row([
            change.instance_id.as_str().into(),
            cell(change.previous_state),
            cell(change.current_state),
        ]);
    }
    table.render(screen)
}
