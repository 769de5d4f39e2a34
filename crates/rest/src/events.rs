//! What happens: as a list, as a stream, and how an instance's start went.

use std::convert::Infallible;

use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Sse,
        sse::{self, KeepAlive},
    },
};
use ec2vmm_cloud::{
    Error,
    error::Noun,
    events::{self as cloud, DescribeEvents},
};
use ec2vmm_model::ids::InstanceId;
use ec2vmm_rest_api::{
    Event, EventKind, EventList, EventQuery, EventStreamQuery, LAST_EVENT_ID_HEADER, Timeline, TimelineStep,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    extract::{NoQuery, Path, Query},
    instances::state,
    problem::Refusal,
    routes::Rest,
};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(stream)).routes(routes!(timeline))
}

/// Lists events
///
/// The earliest first; a bounded number is remembered. Go on with `after` the last one's sequence number.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(EventQuery),
    responses((status = 200, body = EventList), (status = 404, body = ec2vmm_rest_api::Problem)))]
async fn list(
    State(rest): State<Rest>,
    Query(query): Query<EventQuery>,
) -> Result<axum::Json<EventList>, Refusal> {
    let EventQuery { after, instance_id, max_results } = query;
    let what = DescribeEvents { instance: instance_id, after: after.map(sequence).transpose()?, max_results };
    let events = rest.cloud.describe_events(&what).await?;
    Ok(axum::Json(EventList { events: events.iter().map(|event| shown(event)).collect() }))
}

/// Follows events
///
/// Server-sent events: `id` is the sequence number, `event` the kind, `data` the event as JSON. A client
/// that lost the connection goes on where it was with `Last-Event-ID`.
#[utoipa::path(get, path = "/v1/events/stream", tag = "events",
    params(EventStreamQuery, ("last-event-id" = Option<u64>, Header, minimum = 0, nullable = false,
        description = "First what came after this sequence number.")),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
async fn stream(
    State(rest): State<Rest>,
    Query(query): Query<EventStreamQuery>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Refusal> {
    let only =
        query.instance_id.map(|id| id.parse::<InstanceId>().map_err(|_| malformed(&id))).transpose()?;
    let after = last_event_id(&headers)?.or(query.after).map(sequence).transpose()?;
    let mut events = rest.cloud.follow_events(after)?;
    let mut ending = rest.ending.clone();
    let (sender, receiver) = mpsc::channel::<Result<_, Infallible>>(EVENTS_AHEAD);
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = sender.closed() => None,
                () = ending.comes() => None,
            };
            let Some(event) = event else { return };
            if only.is_some() && event.instance != only {
                continue;
            }
            let shown = shown(&event);
            let Ok(data) = serde_json::to_string(&shown) else { continue };
            let message =
                sse::Event::default().id(shown.sequence.to_string()).event(shown.kind.name()).data(data);
            tokio::select! {
                sent = sender.send(Ok(message)) => if sent.is_err() { return },
                () = ending.comes() => return,
            }
        }
    });
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()))
}

/// Shows how an instance's last start went
///
/// From the request to running, each step with the time that it took.
#[utoipa::path(get, path = "/v1/instances/{instance_id}/timeline", tag = "events",
    params(("instance_id" = String, Path, pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 200, body = Timeline)))]
async fn timeline(
    State(rest): State<Rest>,
    Path(id): Path,
    _: NoQuery,
) -> Result<axum::Json<Timeline>, Refusal> {
    let instance = rest.cloud.instance(&id).await?.instance;
    let timeline = rest.cloud.timeline(&id).await?;
    let shown = match timeline {
        Some(timeline) => Timeline {
            instance_id: timeline.instance.to_string(),
            generation: timeline.generation,
            requested: timeline.requested,
            steps: timeline.steps.iter().map(step).collect(),
        },
        None => Timeline {
            instance_id: instance.id.to_string(),
            generation: instance.generation,
            requested: instance.launched,
            steps: Vec::new(),
        },
    };
    Ok(axum::Json(shown))
}

fn step(step: &cloud::TimelineStep) -> TimelineStep {
    TimelineStep { name: step.name.clone(), began_us: step.begin_us, took_us: step.took_us }
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(given) = headers.get(LAST_EVENT_ID_HEADER) else { return Ok(None) };
    let sequence = given.to_str().ok().and_then(|given| given.trim().parse().ok());
    sequence.map(Some).ok_or_else(|| {
        Refusal::invalid(format!("the header {LAST_EVENT_ID_HEADER} is not a sequence number"))
    })
}

/// As the contract has it, a number of 63 bits.
fn sequence(given: u64) -> Result<u64, Refusal> {
    match i64::try_from(given) {
        Ok(_) => Ok(given),
        Err(_) => Err(Refusal::invalid(format!("{given} is not a sequence number"))),
    }
}

fn malformed(id: &str) -> Refusal {
    Error::MalformedId { given: id.chars().take(64).collect(), noun: Noun::Instance }.into()
}

fn shown(event: &cloud::Event) -> Event {
    let states = match event.kind {
        cloud::EventKind::StateChanged { from, to } => Some((state(from), state(to))),
        _ => None,
    };
    Event {
        sequence: event.sequence,
        time: event.time,
        kind: kind(&event.kind),
        instance_id: event.instance.as_ref().map(ToString::to_string),
        previous_state: states.map(|(from, _)| from),
        current_state: states.map(|(_, to)| to),
        message: event.message.clone(),
    }
}

fn kind(kind: &cloud::EventKind) -> EventKind {
    match kind {
        cloud::EventKind::Launched => EventKind::Launched,
        cloud::EventKind::StateChanged { .. } => EventKind::StateChanged,
        cloud::EventKind::RebootRequested => EventKind::RebootRequested,
        cloud::EventKind::Rebooted => EventKind::Rebooted,
        cloud::EventKind::Panicked => EventKind::Panicked,
        cloud::EventKind::Modified => EventKind::Modified,
        cloud::EventKind::Throttled => EventKind::Throttled,
        cloud::EventKind::StepFailed => EventKind::StepFailed,
        cloud::EventKind::Adopted => EventKind::Adopted,
        cloud::EventKind::MachineEnded => EventKind::MachineEnded,
        cloud::EventKind::Swept => EventKind::Swept,
    }
}

/// How many events wait for a client that reads slowly; the others wait in the cloud's log.
const EVENTS_AHEAD: usize = 64;
