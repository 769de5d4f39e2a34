//! The control socket in OpenAPI 3.1. The routes themselves are the machine process's, which tests that these
//! are the same.
#![allow(dead_code, reason = "functions that only carry what is said of a route")]

use utoipa::{
    OpenApi,
    openapi::{
        Content, RefOr, Response,
        path::{Operation, PathItem},
    },
};

use super::{
    AttachDisk, AttachNet, Balloon, Disk, Disks, Machine, Metrics, Net, NetLimits, Nets, PowerRequest,
    Problem, ResizeDisk, SetBalloon, SnapshotRequest, SnapshotTaken, WorkingSet,
};
use crate::{Event, config::RateLimit};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "ec2vmm-vmm",
        description = "The control socket of one machine: HTTP/1.1 on a Unix stream socket.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "http://localhost", description = "Whatever the host name: `curl --unix-socket SOCKET http://localhost/machine`")),
    paths(
        machine, events, metrics, power, pause, resume, snapshot, working_set, disks, attach_disk, disk, detach_disk, resize_disk, limit_disk, nets,
        attach_net, net, detach_net, limit_net, balloon, set_balloon
    ),
    components(schemas(Problem))
)]
struct Contract;

/// The contract of this version.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let mut contract = Contract::openapi();
    for (path, item) in &mut contract.paths.paths {
        let has_id = path.contains("{id}");
        for operation in operations(item) {
            complete(operation, has_id);
        }
    }
    contract
}

/// Every operation: method and path.
pub fn operations_of(contract: &utoipa::openapi::OpenApi) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    for (path, PathItem { get, put, post, delete, .. }) in &contract.paths.paths {
        let methods = [("GET", get), ("PUT", put), ("POST", post), ("DELETE", delete)];
        all.extend(
            methods
                .iter()
                .filter(|(_, operation)| operation.is_some())
                .map(|(method, _)| (*method, path.clone())),
        );
    }
    all
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, .. } = item;
    [get, put, post, delete].into_iter().filter_map(Option::as_mut)
}

/// What can happen to every request of its kind.
fn complete(operation: &mut Operation, has_id: bool) {
    let mut problems = vec![
        ("400", "The request makes no sense: its detail says where"),
        ("413", "The body is too long"),
        ("431", "The head is too long"),
        ("500", "The host is at fault"),
    ];
    if has_id {
        problems.push(("404", "There is no such device"));
    }
    if operation.request_body.is_some() {
        problems.push(("415", "The body is not declared to be JSON"));
    }
    for (status, description) in problems {
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| problem(description).into());
    }
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        if status.starts_with(['4', '5']) {
            response.content = problem("").content;
        }
    }
}

fn problem(description: &str) -> Response {
    let schema = utoipa::openapi::Ref::from_schema_name("Problem");
    let mut response = Response::new(description);
    response.content.insert("application/problem+json".to_owned(), Content::new(Some(RefOr::Ref(schema))));
    response
}

/// What the machine is and does.
#[utoipa::path(get, path = "/machine", tag = "machine", responses((status = 200, body = Machine)))]
fn machine() {}

/// The last events, then each as it happens, to the end of the machine: one JSON document a line.
#[utoipa::path(
    get, path = "/events", tag = "machine",
    responses(
        (status = 200, body = Event, content_type = "application/x-ndjson"),
        (status = 503, description = "Too many follow events already")
    )
)]
fn events() {}

/// Counters since the process started.
#[utoipa::path(get, path = "/metrics", tag = "machine", responses((status = 200, body = Metrics)))]
fn metrics() {}

/// Presses the power button or the reset button, has the guest reboot, or cuts the power. Answered at once: the
/// guest takes its time.
#[utoipa::path(
    put, path = "/machine/power", tag = "machine", request_body = PowerRequest,
    responses(
        (status = 204, description = "Done"),
        (status = 409, description = "A snapshot of it is being written")
    )
)]
fn power() {}

/// Makes the machine stand still: its vCPUs execute nothing, its devices touch nothing of its memory.
#[utoipa::path(
    put, path = "/machine/pause", tag = "machine",
    responses(
        (status = 204, description = "It stands still"),
        (status = 409, description = "The guest has just ended, or asked for a reset")
    )
)]
fn pause() {}

/// Lets the machine go on.
#[utoipa::path(put, path = "/machine/resume", tag = "machine", 
    responses(
        (status = 204, description = "It runs"),
        (status = 409, description = "A snapshot of it is being written")
    ))]
fn resume() {}

/// Writes the machine into two files, which come with the request, by SCM_RIGHTS (unix(7)): the state's and the
/// memory's. A machine that ran goes on when it is done, which is answered then. Until then its state is `snapshotting`:
/// others are answered, what would change the machine is refused with 409, and `power_off` gives the snapshot up.
#[utoipa::path(
    post, path = "/machine/snapshot", tag = "machine", request_body = SnapshotRequest,
    responses(
        (status = 200, body = SnapshotTaken, description = "Both files are written, though perhaps not to the disk yet"),
        (status = 409, description = "There is no snapshot that this could be a difference to, or another one is being written; or the guest was asked to reboot, or has just ended, or the machine before the files were written, which then are no snapshot")
    )
)]
fn snapshot() {}

/// Writes down which pages of its snapshot a restored machine has touched, into the file that it was given for that
/// at birth. From here on it notes no more.
#[utoipa::path(
    put, path = "/machine/working-set", tag = "machine",
    responses(
        (status = 200, body = WorkingSet, description = "The file is written, though perhaps not to the disk yet"),
        (status = 409, description = "Nothing is noted: that was not asked for, or it is written already")
    )
)]
fn working_set() {}

/// The disks, by their place on the bus.
#[utoipa::path(get, path = "/machine/disks", tag = "devices", responses((status = 200, body = Disks)))]
fn disks() {}

/// Attaches a disk. An open file for each layer comes with the request, by SCM_RIGHTS (unix(7)).
#[utoipa::path(
    post, path = "/machine/disks", tag = "devices", request_body = AttachDisk,
    responses(
        (status = 200, body = Disk, description = "It is there, and the guest has been told"),
        (status = 409, description = "The id is taken, or every place; or the machine is paused")
    )
)]
fn attach_disk() {}

/// One disk.
#[utoipa::path(
    get, path = "/machine/disks/{id}", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = Disk))
)]
fn disk() {}

/// Asks the guest to let go of a disk; the event `detached` tells that it has. By force, takes it away.
#[utoipa::path(
    delete, path = "/machine/disks/{id}", tag = "devices",
    params(("id" = String, Path), ("force" = Option<bool>, Query)),
    responses(
        (status = 202, description = "The guest has been asked"),
        (status = 204, description = "It is gone"),
        (status = 409, description = "The machine boots from it, or is paused")
    )
)]
fn detach_disk() {}

/// Makes a disk larger.
#[utoipa::path(
    put, path = "/machine/disks/{id}/size", tag = "devices", params(("id" = String, Path)),
    request_body = ResizeDisk,
    responses(
        (status = 200, body = Disk, description = "It is, and the guest has been told"),
        (status = 409, description = "The disk is read only, or the machine is paused")
    )
)]
fn resize_disk() {}

/// Limits how many requests and bytes of a disk pass.
#[utoipa::path(
    put, path = "/machine/disks/{id}/limit", tag = "devices", params(("id" = String, Path)),
    request_body = RateLimit, responses((status = 200, body = Disk))
)]
fn limit_disk() {}

/// The network interfaces, by their place on the bus.
#[utoipa::path(get, path = "/machine/nets", tag = "devices", responses((status = 200, body = Nets)))]
fn nets() {}

/// Attaches a network interface. An open tap comes with the request, by SCM_RIGHTS (unix(7)).
#[utoipa::path(
    post, path = "/machine/nets", tag = "devices", request_body = AttachNet,
    responses(
        (status = 200, body = Net, description = "It is there, and the guest has been told"),
        (status = 409, description = "The id is taken, or every place; or the machine is paused")
    )
)]
fn attach_net() {}

/// One network interface.
#[utoipa::path(
    get, path = "/machine/nets/{id}", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = Net))
)]
fn net() {}

/// Asks the guest to let go of a network interface; the event `detached` tells that it has. By force, takes
/// it away.
#[utoipa::path(
    delete, path = "/machine/nets/{id}", tag = "devices",
    params(("id" = String, Path), ("force" = Option<bool>, Query)),
    responses(
        (status = 202, description = "The guest has been asked"),
        (status = 204, description = "It is gone"),
        (status = 409, description = "The machine is paused")
    )
)]
fn detach_net() {}

/// Limits how many frames and bytes of a network interface pass.
#[utoipa::path(
    put, path = "/machine/nets/{id}/limits", tag = "devices", params(("id" = String, Path)),
    request_body = NetLimits, responses((status = 200, body = Net))
)]
fn limit_net() {}

/// What the guest was asked to give back, and what it says. Asks it for fresh statistics.
#[utoipa::path(
    get, path = "/machine/balloon", tag = "memory",
    responses((status = 200, body = Balloon))
)]
fn balloon() {}

/// Asks the guest to give memory back. Answered at once: it takes its time.
#[utoipa::path(
    put, path = "/machine/balloon", tag = "memory", request_body = SetBalloon,
    responses((status = 200, body = Balloon))
)]
fn set_balloon() {}
