//! `ec2vmm top`.

mod screen;

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use ec2vmm_rest_api::{Instance, InstanceList, Usage, UsageList};

use self::screen::{Live, Pause};
use crate::{
    Done,
    client::{Call, Client, Error as ClientError},
    clock::now,
    connection::Connection,
    environment::Environment,
    error::Error,
    names::name,
    output::{
        self, bytes,
        screen::{Screen, height},
        span::span,
        table::{Table, number, text, whole},
    },
    value::duration::Span,
};

/// Show what the running instances use, live
///
/// CPU is in percent of one processor, rates are since the last look. q, or Ctrl-C, leaves.
#[derive(Debug, clap::Args)]
pub(crate) struct Top {
    /// Print one table and end; so it is too where the output is no terminal
    #[arg(long)]
    once: bool,
    /// Time between two looks: 500ms, 2s
    #[arg(long, short, value_name = "TIME", default_value = "2s")]
    interval: Span,
    /// Print JSON, once
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &Top, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    if args.json {
        return output::print_json(&usage(&client)?);
    }
    let mut before = sample(&client)?;
    if args.once || !io::stdout().is_terminal() {
        client.pause(args.interval.0);
        let after = sample(&client)?;
        return output::print(table(&before, &after).render(Screen::stdout(environment.plain)));
    }
    let live = Live::enter()?;
    live.draw(&frame(&before, &before, environment))?;
    let mut pause = FIRST_PAUSE.min(args.interval.0);
    loop {
        match live.pause(pause)? {
            Pause::Left => return Ok(ExitCode::SUCCESS),
            Pause::Signal(signal) => return Ok(ExitCode::from(signal)),
            Pause::Over => {}
        }
        pause = args.interval.0;
        match sample(&client) {
            Ok(after) => {
                live.draw(&frame(&before, &after, environment))?;
                before = after;
            }
            // It may come back.
            Err(Error::Daemon(error)) if error.is_absence() => live.draw(&error.to_string())?,
            Err(error) => return Err(error),
        }
    }
}

/// What was used, and by whom.
struct Sample {
    usage: BTreeMap<String, Usage>,
    instances: BTreeMap<String, Instance>,
}

fn sample(client: &Client) -> Result<Sample, Error> {
    let usage = usage(client)?.usage.into_iter().map(|usage| (usage.instance_id.clone(), usage)).collect();
    let running = Call::get(&["v1", "instances"]).with("filter", "instance-state-name=running");
    let instances = client.list::<InstanceList>(&running)?;
    let instances = instances.into_iter().map(|found| (found.instance_id.clone(), found)).collect();
    Ok(Sample { usage, instances })
}

fn usage(client: &Client) -> Result<UsageList, ClientError> {
    client.ask(&Call::get(&["v1", "usage"]))
}

/// What fits on the terminal.
fn frame(before: &Sample, after: &Sample, environment: &Environment) -> String {
    let count = after.usage.len();
    let table = table(before, after).render(Screen::stdout(environment.plain));
    let head = format!("{count} running, {}\n\n", now());
    let rows = height().unwrap_or(usize::MAX);
    let shown: Vec<&str> = head.lines().chain(table.lines()).collect();
    let hidden = shown.len().saturating_sub(rows.saturating_sub(1));
    let mut lines: Vec<String> =
        shown.iter().take(shown.len().saturating_sub(hidden)).map(|line| (*line).to_owned()).collect();
    if hidden > 0 {
        lines.push(format!("... and {hidden} more"));
    }
    lines.join("\n")
}

/// The busiest first.
fn table(before: &Sample, after: &Sample) -> Table {
    let mut table = Table::new([
        whole("ID"),
        text("NAME"),
        whole("TYPE"),
        number("CPU%"),
        number("MEMORY"),
        number("OF"),
        number("READ/S"),
        number("WRITTEN/S"),
        number("IN/S"),
        number("OUT/S"),
        number("CREDITS"),
        number("UP"),
    ]);
    let mut rows: Vec<(Rates, &Usage)> = after
        .usage
        .values()
        .map(|now| (Rates::between(before.usage.get(&now.instance_id), now), now))
        .collect();
    rows.sort_by(|(one, a), (other, b)| {
        other.cpu_permille.cmp(&one.cpu_permille).then_with(|| a.instance_id.cmp(&b.instance_id))
    });
    for (rates, usage) in rows {
        table.row([
            usage.instance_id.as_str().into(),
            after.instances.get(&usage.instance_id).and_then(name).into(),
            usage.instance_type.as_str().into(),
            format!("{}.{}", rates.cpu_permille / 10, rates.cpu_permille % 10).into(),
            bytes(usage.memory_bytes).into(),
            bytes(usage.memory_mib.saturating_mul(1 << 20)).into(),
            bytes(rates.read).into(),
            bytes(rates.written).into(),
            bytes(rates.received).into(),
            bytes(rates.sent).into(),
            usage.cpu_credits.map(|credits| format!("{credits:.1}")).into(),
            span(usage.timestamp.ms_since(usage.launch_time)).into(),
        ]);
    }
    table
}

/// What is used in a second.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Rates {
    /// Thousandths of one processor.
    cpu_permille: u64,
    read: u64,
    written: u64,
    received: u64,
    sent: u64,
}

impl Rates {
    /// Nothing, where there is nothing to compare with: a machine that was started anew counts from nothing.
    fn between(before: Option<&Usage>, now: &Usage) -> Self {
        let Some(before) = before.filter(|before| before.launch_time == now.launch_time) else {
            return Self::default();
        };
        let ms = now.timestamp.ms_since(before.timestamp);
        let per_second = |one: u64, other: u64| {
            let grown = u128::from(other.saturating_sub(one)) * 1000;
            grown.checked_div(u128::from(ms)).and_then(|rate| u64::try_from(rate).ok()).unwrap_or(0)
        };
        Self {
            cpu_permille: per_second(before.cpu_us, now.cpu_us) / 1000,
            read: per_second(before.disk_read_bytes, now.disk_read_bytes),
            written: per_second(before.disk_written_bytes, now.disk_written_bytes),
            received: per_second(before.net_received_bytes, now.net_received_bytes),
            sent: per_second(before.net_sent_bytes, now.net_sent_bytes),
        }
    }
}

/// So that the first rates are not long in coming.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use ec2vmm_model::Time;
    use ec2vmm_rest_api::Usage;

    use super::Rates;

    #[test]
    fn two_samples_make_a_rate() {
        let usage = |ms: i64, cpu_us: u64, disk_read_bytes: u64| Usage {
            instance_id: "i-1".to_owned(),
            instance_type: "t3.micro".to_owned(),
            vcpus: 2,
            memory_mib: 1024,
            timestamp: Time::from_unix_ms(ms),
            launch_time: Time::from_unix_ms(0),
            cpu_us,
            memory_bytes: 0,
            disk_read_bytes,
            disk_written_bytes: 0,
            net_received_bytes: 0,
            net_sent_bytes: 0,
            cpu_credits: None,
        };
        let before = usage(10_000, 1_000_000, 100);
        let rates = |before: Option<&Usage>, now: &Usage| {
            let rates = Rates::between(before, now);
            (rates.cpu_permille, rates.read)
        };
        assert_eq!(rates(Some(&before), &usage(12_000, 4_000_000, 4_100)), (1_500, 2_000));
        assert_eq!(rates(None, &usage(12_000, 4_000_000, 4_100)), (0, 0));
        // The same moment, and a counter that went back.
        assert_eq!(rates(Some(&before), &usage(10_000, 4_000_000, 4_100)), (0, 0));
        assert_eq!(rates(Some(&before), &usage(12_000, 0, 0)), (0, 0));
        let again = Usage { launch_time: Time::from_unix_ms(11_000), ..usage(12_000, 9_000_000, 9_000) };
        assert_eq!(rates(Some(&before), &again), (0, 0));
    }
}
