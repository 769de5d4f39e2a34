//! What can be asked: one table, from which `404`, `405` and `Allow` follow.

use std::os::fd::OwnedFd;

use ec2vmm_vmm_api::{
    config::RateLimit,
    control::{
        AttachDisk, AttachNet, Balloon, Disk, Disks, Machine, Metrics, Net, NetLimits, Nets, PowerAction,
        PowerRequest, Problem, ResizeDisk, SetBalloon, SnapshotRequest, WorkingSet,
    },
};
use serde::de::DeserializeOwned;

use super::http::{Request, Response, problem};
use crate::snapshot::Files;

/// The machine, as the control socket knows it. Called on the event loop's thread; must not block, but for
/// what a disk takes.
///
/// Whatever returns a [`Problem`] has then changed nothing.
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

    /// Begins to write all of it into files. It stands still until that is done, which is told by
    /// [`tell_snapshot`](super::ControlServer::tell_snapshot). One at a time.
    ///
    /// # Errors
    /// What to answer at once.
    fn snapshot(&mut self, request: SnapshotRequest, files: Files) -> Result<(), Problem>;

    /// Writes down which pages of its snapshot were touched.
    ///
    /// # Errors
    /// What to answer instead of 200.
    fn record_working_set(&mut self) -> Result<WorkingSet, Problem>;

    /// Does something to its power.
    ///
    /// # Errors
    /// What to answer instead of 204.
    fn power(&mut self, request: PowerRequest) -> Result<(), Problem>;

    /// Its disks.
    fn disks(&self) -> Vec<Disk>;

    /// One of them.
    ///
    /// # Errors
    /// There is no such disk.
    fn disk(&self, id: &str) -> Result<Disk, Problem>;

    /// Gives it another, of these files.
    ///
    /// # Errors
    /// What to answer instead of the disk.
    fn attach_disk(&mut self, disk: AttachDisk, files: Vec<OwnedFd>) -> Result<Disk, Problem>;

    /// Makes one larger.
    ///
    /// # Errors
    /// What to answer instead of the disk.
    fn resize_disk(&mut self, id: &str, size: ResizeDisk) -> Result<Disk, Problem>;

    /// Limits what passes.
    ///
    /// # Errors
    /// What to answer instead of the disk.
    fn limit_disk(&mut self, id: &str, limit: RateLimit) -> Result<Disk, Problem>;

    /// Asks the guest for one, or takes it.
    ///
    /// # Errors
    /// What to answer instead.
    fn detach_disk(&mut self, id: &str, force: bool) -> Result<Detached, Problem>;

    /// Its network interfaces.
    fn nets(&self) -> Vec<Net>;

    /// One of them.
    ///
    /// # Errors
    /// There is no such interface.
    fn net(&self, id: &str) -> Result<Net, Problem>;

    /// Gives it another, on this tap.
    ///
    /// # Errors
    /// What to answer instead of the interface.
    fn attach_net(&mut self, net: AttachNet, taps: Vec<OwnedFd>) -> Result<Net, Problem>;

    /// Limits what passes.
    ///
    /// # Errors
    /// What to answer instead of the interface.
    fn limit_net(&mut self, id: &str, limits: NetLimits) -> Result<Net, Problem>;

    /// Asks the guest for one, or takes it.
    ///
    /// # Errors
    /// What to answer instead.
    fn detach_net(&mut self, id: &str, force: bool) -> Result<Detached, Problem>;

    /// Its balloon.
    ///
    /// # Errors
    /// What to answer instead.
    fn balloon(&mut self) -> Result<Balloon, Problem>;

    /// Asks the guest for memory.
    ///
    /// # Errors
    /// What to answer instead of the balloon.
    fn set_balloon(&mut self, target: SetBalloon) -> Result<Balloon, Problem>;
}

/// How far a device has gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Detached {
    /// The guest has been asked for it.
    Asked,
    /// It is gone.
    Gone,
}

/// A request on its way to the handler.
struct Asked<'a> {
    request: &'a Request<'a>,
    /// What the path names where the route has `{id}`.
    id: &'a str,
    force: bool,
    descriptors: Vec<OwnedFd>,
}

/// Answers one request. Without `may_stream`, one that has no end is refused. The descriptors that came with
/// it are closed if nobody takes them.
pub(super) fn respond(
    request: &Request<'_>,
    descriptors: Vec<OwnedFd>,
    may_stream: bool,
    handler: &mut dyn Handler,
) -> Response {
    route(request, descriptors, may_stream, handler).unwrap_or_else(|response| response)
}

/// # Errors
/// The answer, where it is a problem.
fn route(
    request: &Request<'_>,
    descriptors: Vec<OwnedFd>,
    may_stream: bool,
    handler: &mut dyn Handler,
) -> Result<Response, Response> {
    let refuse = |problem: Problem| Response::problem(&problem);
    let target = path(request.target);
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let found: Vec<_> = ROUTES.iter().filter_map(|route| Some((route, matches(route.path, path)?))).collect();
    if found.is_empty() {
        let mut all: Vec<_> = ROUTES.iter().map(|route| route.path).collect();
        all.dedup();
        let hint = Some(format!("there is {}", all.join(", ")));
        return Err(refuse(Problem { hint, ..problem(404, format!("no such resource: {path}")) }));
    }
    let method = if request.method == "HEAD" { "GET" } else { request.method };
    let Some((route, id)) = found.iter().find(|(route, _)| route.method() == method) else {
        let methods: Vec<_> = found.iter().flat_map(|(route, _)| route.allowed()).copied().collect();
        let problem = problem(405, format!("{path} knows no {}", request.method));
        return Err(refuse(problem).allow(methods.join(", ")));
    };
    let force = force(route, query).map_err(refuse)?;
    if !descriptors.is_empty() && !route.takes_descriptors() {
        let count = descriptors.len();
        return Err(refuse(problem(400, format!("{method} {path} takes no descriptors, and {count} came"))));
    }
    let asked = Asked { request, id, force, descriptors };
    match route.act {
        Act::Get(get) => check_no_content(request).and_then(|()| get(handler, &asked)),
        Act::Stream(_) if !may_stream && request.method == "GET" => Err(Problem {
            hint: Some("close another one first".into()),
            ..problem(503, format!("{path}: too many are being followed already"))
        }),
        Act::Stream(first) => check_no_content(request).map(|()| Response::lines(first(handler))),
        Act::Put(put) => put(handler, &asked),
        Act::Post(post) => post(handler, asked),
        Act::Delete(delete) => check_no_content(request).and_then(|()| delete(handler, &asked)),
    }
    .map_err(refuse)
}

struct Route {
    path: &'static str,
    act: Act,
}

#[derive(Clone, Copy)]
enum Act {
    Get(fn(&mut dyn Handler, &Asked<'_>) -> Result<Response, Problem>),
    /// The first of what has no end.
    Stream(fn(&dyn Handler) -> Vec<u8>),
    Put(fn(&mut dyn Handler, &Asked<'_>) -> Result<Response, Problem>),
    /// Takes descriptors.
    Post(fn(&mut dyn Handler, Asked<'_>) -> Result<Response, Problem>),
    /// May have `force=true` as its query.
    Delete(fn(&mut dyn Handler, &Asked<'_>) -> Result<Response, Problem>),
}

impl Route {
    fn method(&self) -> &'static str {
        match self.act {
            Act::Get(_) | Act::Stream(_) => "GET",
            Act::Put(_) => "PUT",
            Act::Post(_) => "POST",
            Act::Delete(_) => "DELETE",
        }
    }

    fn allowed(&self) -> &'static [&'static str] {
        match self.act {
            Act::Get(_) | Act::Stream(_) => &["GET", "HEAD"],
            Act::Put(_) => &["PUT"],
            Act::Post(_) => &["POST"],
            Act::Delete(_) => &["DELETE"],
        }
    }

    fn takes_descriptors(&self) -> bool {
        matches!(self.act, Act::Post(_))
    }
}

const ROUTES: &[Route] = &[
    Route { path: "/machine", act: Act::Get(|handler, _| Response::json(&handler.machine())) },
    Route { path: "/events", act: Act::Stream(|handler| handler.events()) },
    Route { path: "/metrics", act: Act::Get(|handler, _| Response::json(&handler.metrics())) },
    Route { path: "/machine/power", act: Act::Put(power) },
    Route { path: "/machine/pause", act: Act::Put(|handler, asked| done(asked, || handler.pause())) },
    Route { path: "/machine/resume", act: Act::Put(|handler, asked| done(asked, || handler.resume())) },
    Route {
        path: "/machine/disks",
        act: Act::Get(|handler, _| Response::json(&Disks { disks: handler.disks() })),
    },
    Route {
        path: "/machine/disks",
        act: Act::Post(|handler, asked| {
            Response::json(&handler.attach_disk(read_json::<AttachDisk>(asked.request)?, asked.descriptors)?)
        }),
    },
    Route {
        path: "/machine/disks/{id}",
        act: Act::Get(|handler, asked| Response::json(&handler.disk(asked.id)?)),
    },
    Route {
        path: "/machine/disks/{id}",
        act: Act::Delete(|handler, asked| handler.detach_disk(asked.id, asked.force).map(detached)),
    },
    Route {
        path: "/machine/disks/{id}/size",
        act: Act::Put(|handler, asked| {
            Response::json(&handler.resize_disk(asked.id, read_json::<ResizeDisk>(asked.request)?)?)
        }),
    },
    Route {
        path: "/machine/disks/{id}/limit",
        act: Act::Put(|handler, asked| {
            Response::json(&handler.limit_disk(asked.id, read_json::<RateLimit>(asked.request)?)?)
        }),
    },
    Route {
        path: "/machine/nets",
        act: Act::Get(|handler, _| Response::json(&Nets { nets: handler.nets() })),
    },
    Route {
        path: "/machine/nets",
        act: Act::Post(|handler, asked| {
            Response::json(&handler.attach_net(read_json::<AttachNet>(asked.request)?, asked.descriptors)?)
        }),
    },
    Route {
        path: "/machine/nets/{id}",
        act: Act::Get(|handler, asked| Response::json(&handler.net(asked.id)?)),
    },
    Route {
        path: "/machine/nets/{id}",
        act: Act::Delete(|handler, asked| handler.detach_net(asked.id, asked.force).map(detached)),
    },
    Route {
        path: "/machine/nets/{id}/limits",
        act: Act::Put(|handler, asked| {
            Response::json(&handler.limit_net(asked.id, read_json::<NetLimits>(asked.request)?)?)
        }),
    },
    Route { path: "/machine/balloon", act: Act::Get(|handler, _| Response::json(&handler.balloon()?)) },
    Route {
        path: "/machine/balloon",
        act: Act::Put(|handler, asked| {
            Response::json(&handler.set_balloon(read_json::<SetBalloon>(asked.request)?)?)
        }),
    },
    Route { path: "/machine/snapshot", act: Act::Post(snapshot) },
    Route {
        path: "/machine/working-set",
        act: Act::Put(|handler, asked| {
            check_no_content(asked.request)?;
            Response::json(&handler.record_working_set()?)
        }),
    },
];

/// Every route: method and path.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|route| (route.method(), route.path))
}

fn snapshot(handler: &mut dyn Handler, asked: Asked<'_>) -> Result<Response, Problem> {
    let request: SnapshotRequest = read_json(asked.request)?;
    let Ok([state, memory]) = <[OwnedFd; 2]>::try_from(asked.descriptors) else {
        let detail = "a snapshot takes two descriptors: the state's and the memory's, in this order";
        return Err(problem(400, detail.into()));
    };
    handler.snapshot(request, Files { state: state.into(), memory: memory.into() })?;
    Ok(Response::later())
}

fn power(handler: &mut dyn Handler, asked: &Asked<'_>) -> Result<Response, Problem> {
    let request: PowerRequest = read_json(asked.request)?;
    if request.grace_ms.is_some() && request.action != PowerAction::Reboot {
        return Err(problem(400, "grace_ms: only the action `reboot` waits for the guest".into()));
    }
    handler.power(request)?;
    Ok(Response::no_content())
}

fn done(asked: &Asked<'_>, act: impl FnOnce() -> Result<(), Problem>) -> Result<Response, Problem> {
    check_no_content(asked.request)?;
    act()?;
    Ok(Response::no_content())
}

fn detached(detached: Detached) -> Response {
    match detached {
        Detached::Asked => Response::accepted(),
        Detached::Gone => Response::no_content(),
    }
}

/// What stands for `{id}` in `path`, or nothing of a route without one, if the path is the route's.
fn matches<'a>(route: &str, path: &'a str) -> Option<&'a str> {
    let Some((before, after)) = route.split_once("{id}") else {
        return (route == path).then_some("");
    };
    let id = path.strip_prefix(before)?.strip_suffix(after)?;
    (!id.is_empty() && !id.contains('/')).then_some(id)
}

fn force(route: &Route, query: Option<&str>) -> Result<bool, Problem> {
    match (route.act, query) {
        (_, None) | (Act::Delete(_), Some("force=false")) => Ok(false),
        (Act::Delete(_), Some("force=true")) => Ok(true),
        (Act::Delete(_), Some(query)) => {
            Err(problem(400, format!("?{query}: force=true or force=false is all that can be said")))
        }
        (_, Some(query)) => Err(problem(400, format!("?{query}: {} takes no query", route.path))),
    }
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

/// What is asked for: of an absolute URI, the part after the authority.
fn path(target: &str) -> &str {
    let is_http = |scheme: &str| scheme.eq_ignore_ascii_case("http");
    match target.split_once("://") {
        Some((scheme, rest)) if is_http(scheme) => {
            rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")
        }
        _ => target,
    }
}
