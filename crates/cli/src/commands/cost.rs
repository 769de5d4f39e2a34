//! `ec2vmm cost`.

use std::time::Duration;

use clap_complete::ArgValueCompleter;
use ec2vmm_model::prices::Usd;
use ec2vmm_rest_api::{Cost, CostReport};

use crate::{
    Done,
    client::Call,
    complete,
    connection::Connection,
    environment::Environment,
    names::{self, NAME_TAG},
    output::{
        self,
        screen::{Screen, state_style},
        span::span,
        state_name,
        table::{Cell, Table, number, text, whole},
    },
    value::moment::Moment,
};

/// Show what the same use would have cost on AWS, on demand
///
/// Compute is charged by the second while an instance runs, at least 60 for each start; storage from when a
/// volume is made until it is deleted, whether the instance runs or not. List prices of Linux, without tax.
#[derive(Debug, clap::Args)]
pub(crate) struct CostArgs {
    /// Only this instance and its volumes: its id, the beginning of its id, or its Name tag
    #[arg(value_name = "ID", add = ArgValueCompleter::new(complete::instances))]
    instance: Option<String>,
    /// Only what was used from here on: 2026-11-22 or 2026-11-22T10:33:13Z [default: the first day]
    #[arg(long, value_name = "TIME")]
    from: Option<Moment>,
    /// Only what was used before [default: now]
    #[arg(long, value_name = "TIME")]
    to: Option<Moment>,
    /// Print JSON and not a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &CostArgs, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let id = args.instance.as_ref().map(|given| names::resolve(&client, given)).transpose()?;
    let call = Call::get(&["v1", "cost"])
        .with_some("from", args.from.map(|from| from.0.to_string()))
        .with_some("to", args.to.map(|to| to.0.to_string()))
        .with_some("instance_id", id);
    let report: CostReport = client.ask(&call)?;
    match args.json {
        true => output::print_json(&report),
        false => output::print(describe(&report, Screen::stdout(environment.plain))),
    }
}

fn describe(report: &CostReport, screen: Screen) -> String {
    let columns = Columns {
        credits: !is_nothing(report.total.cpu_credits_usd),
        addresses: !is_nothing(report.total.addresses_usd),
    };
    let mut head = vec![
        whole("ID"),
        text("NAME"),
        text("TYPE"),
        text("STATE"),
        number("STARTS"),
        number("RAN"),
        number("COMPUTE"),
    ];
    head.extend(columns.credits.then_some(number("CREDITS")));
    head.push(number("STORAGE"));
    head.extend(columns.addresses.then_some(number("ADDRESSES")));
    head.extend([number("USD"), number("USD/HOUR")]);
    let mut table = Table::new(head);
    for found in &report.instances {
        let state = found
            .state
            .map_or_else(|| Cell::from("-"), |state| Cell::styled(state_name(state), state_style(state)));
        let name = found.tags.get(NAME_TAG).filter(|name| !name.is_empty()).map(String::as_str);
        let head =
            [found.instance_id.as_str().into(), name.into(), found.instance_type.as_deref().into(), state];
        table.row(row(head, &found.cost, columns));
    }
    if let Some(others) = report.others.as_ref().filter(|others| **others != Cost::default()) {
        table.row(row(["others".into(), "-".into(), "-".into(), "-".into()], others, columns));
    }
    table.row(row(["total".into(), "".into(), "".into(), "".into()], &report.total, columns));
    let from = report.from.map_or_else(|| "the first day".to_owned(), |from| from.to_string());
    let mut told = table.render(screen);
    told +=
        &format!("\n{}, on demand, from {from} to {}\n", output::printable(&report.price_region), report.to);
    if report.total.unpriced > 0 {
        told += &format!(
            "{} intervals are in no sum, because AWS publishes no price of the type\n",
            report.total.unpriced
        );
    }
    told
}

/// Columns that are shown only where something is in them.
#[derive(Clone, Copy, Debug)]
struct Columns {
    credits: bool,
    addresses: bool,
}

fn row(head: [Cell; 4], cost: &Cost, columns: Columns) -> Vec<Cell> {
    let ran = Duration::try_from_secs_f64(cost.running_seconds).unwrap_or_default();
    let mut cells = Vec::from(head);
    cells.push(cost.starts.to_string().into());
    cells.push(span(u64::try_from(ran.as_millis()).unwrap_or(u64::MAX)).into());
    cells.push(dollars(cost.compute_usd));
    cells.extend(columns.credits.then(|| dollars(cost.cpu_credits_usd)));
    cells.push(dollars(cost.storage_usd));
    cells.extend(columns.addresses.then(|| dollars(cost.addresses_usd)));
    cells.extend([dollars(cost.total_usd), dollars(cost.usd_per_hour)]);
    cells
}

fn is_nothing(usd: Usd) -> bool {
    usd == Usd::ZERO
}

/// A second of a t3.micro is 0.000003 USD: cents would hide most of it.
fn dollars(usd: Usd) -> Cell {
    usd.rounded(USD_PLACES).into()
}

const USD_PLACES: u32 = 6;
