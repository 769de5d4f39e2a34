//! The contract in OpenAPI 3.1: what the handlers say of themselves, and what is true of all of them.

use ec2vmm_rest_api::{PROBLEM_MEDIA_TYPE, Problem, REQUEST_ID_HEADER};
use utoipa::{
    OpenApi,
    openapi::{
        Content, Header, RefOr, Response,
        path::{Operation, PathItem},
    },
};

use crate::routes::routes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "ec2vmm",
        description = "The REST control socket of ec2vmmd: HTTP/1.1 on a Unix stream socket. EC2's nouns, verbs and error codes.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "http://localhost", description = "Whatever the host name: `curl --unix-socket /run/ec2vmm/ec2vmmd.sock http://localhost/v1/status`")),
    components(schemas(Problem))
)]
struct Contract;

/// The contract of this version.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let (_, described) = routes().split_for_parts();
    let mut contract = Contract::openapi();
    contract.merge(described);
    for item in contract.paths.paths.values_mut() {
        for operation in operations(item) {
            complete(operation);
        }
    }
    contract
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    [get, put, post, delete, patch].into_iter().filter_map(Option::as_mut)
}

/// What can happen to every request of its kind.
fn complete(operation: &mut Operation) {
    use utoipa::openapi::path::ParameterIn;
    let has_path_parameter = operation
        .parameters
        .iter()
        .flatten()
        .any(|parameter| matches!(parameter.parameter_in, ParameterIn::Path));
    let mut statuses = vec![
        ("400", "A parameter makes no sense"),
        ("500", "The daemon is at fault: its log says more"),
        ("503", "The daemon is starting, ending or overloaded: try again shortly"),
    ];
    if has_path_parameter {
        statuses.push(("404", "There is no such resource"));
    }
    if operation.request_body.is_some() {
        statuses.extend([
            ("408", "The body did not come in time"),
            ("413", "The body is too long"),
            ("415", "The body is not declared to be JSON"),
            ("422", "The body is JSON, but not what this request takes"),
        ]);
    }
    for (status, description) in statuses {
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| problem(description).into());
    }
    let without_body = [
        ("414", "The request's path and query are too long; without a body, and the connection is closed"),
        ("431", "The request's head is too long; without a body, and the connection is closed"),
    ];
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        // A handler names its problems by their schema; what media type problems have is said here.
        if status.starts_with(['4', '5']) {
            let meaning = problem(described(status, &response.description));
            response.content = meaning.content;
            response.description = meaning.description;
        } else if response.description.is_empty() {
            response.description = "Done".to_owned();
        }
        let mut id = Header::default();
        id.description = Some("By which the daemon's log is searched".to_owned());
        response.headers.insert(REQUEST_ID_HEADER.to_owned(), id);
    }
    // What is refused before there is a request has neither words nor an id.
    for (status, description) in without_body {
        let response = Response::new(description);
        operation.responses.responses.insert(status.to_owned(), response.into());
    }
}

fn described<'a>(status: &str, given: &'a str) -> &'a str {
    match (given, status) {
        ("", "404") => "There is no such resource",
        ("", "409") => "The resource's state, or the host's capacity, does not allow it",
        ("", "426") => "The connection must be upgraded",
        ("", _) => "The request was refused",
        _ => given,
    }
}

fn problem(description: &str) -> Response {
    let schema = utoipa::openapi::Ref::from_schema_name("Problem");
    let content = Content::new(Some(RefOr::Ref(schema)));
    let mut response = Response::new(description);
    response.content.insert(PROBLEM_MEDIA_TYPE.to_owned(), content);
    response
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    #[test]
    fn the_contract_that_is_checked_in() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        let now = format!("{}\n", super::openapi().to_pretty_json().unwrap());
        if env::var_os("UPDATE").is_some() {
            fs::write(&path, &now).unwrap();
        }
        let checked_in = fs::read_to_string(&path).unwrap_or_default();
        assert!(now == checked_in, "docs/openapi.json is not the contract: run this test with UPDATE=1");
    }
}
