//! `ec2vmm events`.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap_complete::ArgValueCompleter;
use ec2vmm_rest_api::{EVENTS_PAGE_MAX, Event, EventList, Timeline};

use crate::{
    Done,
    client::{Call, Came, Client, Error as ClientError},
    complete,
    connection::Connection,
    environment::Environment,
    error::Error,
    names,
    output::{
        self,
        screen::Screen,
        span::took,
        table::{Table, number, text, whole},
    },
};

/// Show what happened
#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Only to this instance: its id, the beginning of its id, or its Name tag
    #[arg(value_name = "ID", add = ArgValueCompleter::new(complete::instances))]
    instance: Option<String>,
    /// Only the last so many of those that are remembered
    #[arg(long, short = 'n', value_name = "N")]
    last: Option<usize>,
    /// Go on with what happens from now on, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Show how long each step of the instance's last start took
    #[arg(long, requires = "instance", conflicts_with_all = ["follow", "last"])]
    timeline: bool,
    /// Print JSON; with --follow, one event a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: &EventsArgs, environment: &Environment) -> Done {
    let client = args.connection.client(environment)?;
    let id = args.instance.as_ref().map(|given| names::resolve(&client, given)).transpose()?;
    if let (true, Some(id)) = (args.timeline, &id) {
        return timeline(&client, id, args, environment);
    }
    let mut events = past(&client, id.as_deref())?;
    let last = events.last().map(|event| event.sequence);
    if let Some(count) = args.last {
        events.drain(..events.len().saturating_sub(count));
    }
    if args.follow {
        events.iter().try_for_each(|event| print(event, args.json))?;
        return follow(&client, id.as_deref(), last, args.json);
    }
    match args.json {
        true => output::print_json(&EventList { events }),
        false => output::print(events.iter().map(line).collect::<String>()),
    }
}

/// All that is remembered.
fn past(client: &Client, id: Option<&str>) -> Result<Vec<Event>, Error> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let after = events.last().map(|event| event.sequence.to_string());
        let call = Call::get(&["v1", "events"])
            .with_some("instance_id", id)
            .with_some("after", after)
            .with("max_results", EVENTS_PAGE_MAX.to_string());
        let page: EventList = client.ask(&call)?;
        let last = events.last().map(|event| event.sequence);
        let before = events.len();
        // A daemon that gives the same page for ever shall not be asked for ever.
        events.extend(page.events.into_iter().filter(|event| last.is_none_or(|last| event.sequence > last)));
        if events.len().saturating_sub(before) < PAGE_LEN {
            return Ok(events);
        }
    }
}

/// For ever. A daemon that comes back goes on where the one before ended.
fn follow(client: &Client, id: Option<&str>, mut last: Option<u64>, json: bool) -> Done {
    let mut absent_since: Option<Instant> = None;
    loop {
        match listen(client, id, &mut last, json, &mut absent_since) {
            Ok(code) => return Ok(code),
            Err(Error::Daemon(error)) if error.is_absence() => {
                let since = *absent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > ABSENCE_MAX {
                    return Err(error.into());
                }
                client.pause(ABSENCE_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

fn listen(
    client: &Client,
    id: Option<&str>,
    last: &mut Option<u64>,
    json: bool,
    absent_since: &mut Option<Instant>,
) -> Done {
    let call = Call::get(&["v1", "events", "stream"])
        .with_some("instance_id", id)
        .with_some("after", last.map(|last| last.to_string()));
    let mut events = client.events(&call)?;
    *absent_since = None;
    loop {
        match events.next(None)? {
            Came::Message(message) => {
                let event: Event = serde_json::from_str(&message.data)
                    .map_err(|error| ClientError::Nonsense(format!("an event: {error}")))?;
                *last = Some(event.sequence);
                print(&event, json)?;
            }
            Came::Nothing => {}
            Came::End => return Err(ClientError::Gone(None).into()),
        }
    }
}

fn print(event: &Event, json: bool) -> Result<(), Error> {
    let line = match json {
        true => serde_json::to_string(event).map(|line| line + "\n").map_err(|error| {
            Error::new(ec2vmm_vmm_api::FailureKind::Other, format!("cannot write JSON: {error}"))
        })?,
        false => line(event),
    };
    output::print(line).map(|_: ExitCode| ())
}

/// One line for people. As the columns are of known width, lines that come later fit those before.
fn line(event: &Event) -> String {
    let id = event.instance_id.as_deref().unwrap_or("-");
    let line =
        format!("{}  {id:ID_WIDTH$}  {:KIND_WIDTH$}  {}", event.time, event.kind.name(), event.message);
    output::printable(line.trim_end()) + "\n"
}

fn timeline(client: &Client, id: &str, args: &EventsArgs, environment: &Environment) -> Done {
    let timeline: Timeline = client.ask(&Call::get(&["v1", "instances", id, "timeline"]))?;
    match args.json {
        true => output::print_json(&timeline),
        false => output::print(describe(&timeline, Screen::stdout(environment.plain))),
    }
}

fn describe(timeline: &Timeline, screen: Screen) -> String {
    let mut table = Table::new([number("AFTER"), number("TOOK"), text("STEP"), whole("")]);
    let end = timeline.steps.iter().map(|step| step.began_us.saturating_add(step.took_us)).max().unwrap_or(0);
    for step in &timeline.steps {
        table.row([
            took(step.began_us).into(),
            took(step.took_us).into(),
            step.name.as_str().into(),
            bar(step.began_us, step.took_us, end).into(),
        ]);
    }
    format!(
        "start {} of {}, asked for at {}, took {}\n\n{}",
        timeline.generation,
        output::printable(&timeline.instance_id),
        timeline.requested,
        took(end),
        table.render(screen)
    )
}

/// When a step was, as a picture.
fn bar(began: u64, took: u64, end: u64) -> String {
    let scale = |us: u64| {
        let place = u128::from(us) * BAR_WIDTH / u128::from(end.max(1));
        usize::try_from(place).unwrap_or(0)
    };
    let (from, to) = (scale(began), scale(began.saturating_add(took)));
    format!("{}{}", " ".repeat(from), "█".repeat(to.saturating_sub(from).max(1)))
}

const PAGE_LEN: usize = EVENTS_PAGE_MAX as usize;
const ID_WIDTH: usize = 19;
const KIND_WIDTH: usize = 16;
const BAR_WIDTH: u128 = 30;
const ABSENCE_MAX: Duration = Duration::from_secs(60);
const ABSENCE_PAUSE: Duration = Duration::from_millis(250);
