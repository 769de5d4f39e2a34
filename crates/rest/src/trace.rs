//! Every request has an id, one span, one line in the log and its place in the metrics; every refusal is
//! written here, so that it names its request.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, Response, StatusCode, header},
    middleware::Next,
    response::IntoResponse,
};
use ec2vmm_rest_api::REQUEST_ID_HEADER;
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    problem::{Refusal, written},
    routes::Rest,
};

/// Around every request.
pub(crate) async fn trace(State(rest): State<Rest>, request: Request, next: Next) -> Response<Body> {
    let began = Instant::now();
    let id = request_id(&request);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let path: String = request.uri().path().chars().take(PATH_CHARS_MAX).collect();
    let span = tracing::info_span!("request", id = %id, %method, %path);
    let present = rest.metrics.begin();
    let mut response = finish(&rest, request, next).instrument(span.clone()).await;
    drop(present);
    let _inside = span.enter();
    let refusal = response.extensions_mut().remove::<Refusal>().or_else(|| without_words(response.status()));
    if let Some(refusal) = &refusal {
        let (parts, body) = written(refusal, &id).into_parts();
        // What is there already says more: which methods are allowed, say.
        response.headers_mut().extend(parts.headers);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = body;
    }
    let status = response.status();
    let took = began.elapsed();
    rest.metrics.done(&method, route.as_deref().unwrap_or("unknown"), status.as_u16(), took);
    log(status, took, refusal.as_ref());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID_HEADER, id);
    }
    response
}

/// What was begun is finished, whether its client waits for it or not.
async fn finish(rest: &Rest, request: Request, next: Next) -> Response<Body> {
    let turn = tokio::time::timeout(TURN_TIME_MAX, Arc::clone(&rest.under_way).acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        return Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "RequestLimitExceeded",
            "There are too many requests at once",
        )
        .into_response();
    };
    let work = async move {
        let response = next.run(request).await;
        drop(turn);
        response
    };
    match tokio::spawn(work.in_current_span()).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%error, "a request ended by a panic");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// What axum refuses by itself: a path or a method that is not there.
fn without_words(status: StatusCode) -> Option<Refusal> {
    let refusal = match status {
        StatusCode::NOT_FOUND => Refusal::new(status, "InvalidAction", "there is nothing at this path"),
        StatusCode::METHOD_NOT_ALLOWED => {
            Refusal::new(status, "InvalidAction", "this path does not have this method")
        }
        _ if status.is_server_error() => {
            Refusal::new(status, "InternalError", "an internal error has occurred")
        }
        _ if status.is_client_error() => Refusal::new(status, "InvalidRequest", "the request makes no sense"),
        _ => return None,
    };
    Some(refusal.hint("see /v1/openapi.json for what can be asked"))
}

fn log(status: StatusCode, took: Duration, refusal: Option<&Refusal>) {
    let status = status.as_u16();
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    match refusal {
        Some(Refusal { code, detail, .. }) => tracing::info!(status, took_us, code, detail, "refused"),
        None => tracing::info!(status, took_us, "answered"),
    }
}

/// The client's own, where it is one that can be written in a log.
fn request_id(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID_HEADER).and_then(|value| value.to_str().ok());
    let fits = |id: &&str| {
        (1..=ID_CHARS_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    given.filter(fits).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

const ID_CHARS_MAX: usize = 64;
/// Longer ones are cut in the log.
const PATH_CHARS_MAX: usize = 256;
/// How long a request waits for its turn.
const TURN_TIME_MAX: Duration = Duration::from_secs(10);
