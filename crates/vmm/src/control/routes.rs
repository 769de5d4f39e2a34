//! What can be asked: one table, from which `404`, `405` and `Allow` follow.

use ec2vmm_vmm_api::control::{Machine, Metrics, PowerAction, PowerRequest, Problem};
use serde::de::DeserializeOwned;

use super::http::{Request, Response, problem};

/// The machine, as the control socket knows it. Called on the event loop's thread; must not block.
pub trait Handler {
    /// What it is and does.
    fn machine(&self) -> Machine;

    /// Its counters.
    fn metrics(&self) -> Metrics;

    /// Its last events, one JSON document a line.
    fn events(&self) -> Vec<u8>;

    /// Makes it stand still, if it does not already.
    ///
    /// # Errors
    /// What to answer instead of 204.
    fn pause(&mut self) -> Result<(), Problem>;

    /// Lets it go on, if it does not already.
    ///
    /// # Errors
    /// What to answer instead of 204.
    fn resume(&mut self) -> Result<(), Problem>;

    /// Does something to its power.
    ///
    /// # Errors
    /// What to answer instead of 204.
    fn power(&mut self, action: PowerAction) -> Result<(), Problem>;
}

/// Answers one request. Without `may_stream`, one that has no end is refused.
pub(super) fn respond(request: &Request<'_>, may_stream: bool, handler: &mut dyn Handler) -> Response {
    let path = path(request.target);
    let Some(resource) = RESOURCES.iter().find(|resource| resource.path == path) else {
        let all: Vec<_> = RESOURCES.iter().map(|resource| resource.path).collect();
        let hint = Some(format!("there is {}", all.join(", ")));
        return Response::problem(&Problem { hint, ..problem(404, format!("no such resource: {path}")) });
    };
    let result = match (request.method, resource.verb) {
        ("GET" | "HEAD", Verb::Get(get)) => check_no_content(request).and_then(|()| get(handler)),
        ("GET", Verb::Stream(_)) if !may_stream => Err(Problem {
            hint: Some("close another one first".into()),
            ..problem(503, format!("{path}: too many are being followed already"))
        }),
        ("GET" | "HEAD", Verb::Stream(first)) => {
            check_no_content(request).map(|()| Response::lines(first(handler)))
        }
        ("PUT", Verb::Put(put)) => put(handler, request),
        (method, verb) => {
            let detail = format!("{path} knows no {method}");
            return Response::problem(&problem(405, detail)).allow(verb.methods().to_owned());
        }
    };
    result.unwrap_or_else(|problem| Response::problem(&problem))
}

struct Resource {
    path: &'static str,
    verb: Verb,
}

#[derive(Clone, Copy)]
enum Verb {
    Get(fn(&dyn Handler) -> Result<Response, Problem>),
    /// The first of what has no end.
    Stream(fn(&dyn Handler) -> Vec<u8>),
    Put(fn(&mut dyn Handler, &Request<'_>) -> Result<Response, Problem>),
}

impl Verb {
    fn methods(self) -> &'static str {
        match self {
            Self::Get(_) | Self::Stream(_) => "GET, HEAD",
            Self::Put(_) => "PUT",
        }
    }
}

const RESOURCES: &[Resource] = &[
    Resource { path: "/machine", verb: Verb::Get(|handler| Response::json(&handler.machine())) },
    Resource { path: "/events", verb: Verb::Stream(|handler| handler.events()) },
    Resource { path: "/metrics", verb: Verb::Get(|handler| Response::json(&handler.metrics())) },
    Resource { path: "/machine/power", verb: Verb::Put(power) },
    Resource { path: "/machine/pause", verb: Verb::Put(pause) },
    Resource { path: "/machine/resume", verb: Verb::Put(resume) },
];

fn pause(handler: &mut dyn Handler, request: &Request<'_>) -> Result<Response, Problem> {
    check_no_content(request)?;
    handler.pause()?;
    Ok(Response::no_content())
}

fn resume(handler: &mut dyn Handler, request: &Request<'_>) -> Result<Response, Problem> {
    check_no_content(request)?;
    handler.resume()?;
    Ok(Response::no_content())
}

fn power(handler: &mut dyn Handler, request: &Request<'_>) -> Result<Response, Problem> {
    let PowerRequest { action } = read_json(request)?;
    handler.power(action)?;
    Ok(Response::no_content())
}

fn read_json<T: DeserializeOwned>(request: &Request<'_>) -> Result<T, Problem> {
    if let Some(kind) = request.content_type.filter(|kind| !is_json(kind)) {
        return Err(Problem {
            hint: Some("send Content-Type: application/json (curl --json does)".into()),
            ..problem(415, format!("not JSON: {}", String::from_utf8_lossy(kind)))
        });
    }
    serde_json::from_slice(request.body).map_err(|error| problem(400, format!("request body: {error}")))
}

/// `application/json`, with or without parameters.
fn is_json(content_type: &[u8]) -> bool {
    let kind = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

fn check_no_content(request: &Request<'_>) -> Result<(), Problem> {
    match request.body {
        [] => Ok(()),
        _ => {
            let (method, path) = (request.method, path(request.target));
            Err(problem(400, format!("{method} {path} takes no request body")))
        }
    }
}

/// What is asked for: of an absolute URI, the part after the authority. A query is part of it, since
/// no resource has one.
fn path(target: &str) -> &str {
    let is_http = |scheme: &str| scheme.eq_ignore_ascii_case("http");
    match target.split_once("://") {
        Some((scheme, rest)) if is_http(scheme) => {
            rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")
        }
        _ => target,
    }
}
