//! What the daemon says of itself: status, health, metrics, its contract.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use ec2vmm_rest_api::{Capacity, Health, Status};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{extract::NoQuery, instances::state, problem::Refusal, routes::Rest};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(health))
        .routes(routes!(readiness))
        .routes(routes!(metrics))
        .routes(routes!(contract))
}

/// Shows what the daemon is and has
#[utoipa::path(get, path = "/v1/status", tag = "daemon", responses((status = 200, body = Status)))]
async fn status(State(rest): State<Rest>, _: NoQuery) -> Result<axum::Json<Status>, Refusal> {
    let figures = rest.cloud.figures()?;
    Ok(axum::Json(Status {
        version: rest.about.version.clone(),
        host: rest.about.host.clone(),
        pid: std::process::id(),
        started: rest.about.started,
        region: rest.cloud.config().region.clone(),
        instances: figures.instances.iter().map(|(at, count)| (state(*at), *count)).collect(),
        capacity: Capacity {
            vcpus: figures.vcpus,
            vcpus_given: figures.vcpus_given,
            memory_mib: figures.memory_mib,
            memory_given_mib: figures.memory_given_mib,
        },
    }))
}

/// Tells that the process answers
#[utoipa::path(get, path = "/healthz", tag = "daemon", responses((status = 200, body = Health)))]
async fn health(_: NoQuery) -> axum::Json<Health> {
    axum::Json(Health { status: "ok".to_owned() })
}

/// Tells that requests are taken
#[utoipa::path(get, path = "/readyz", tag = "daemon", responses((status = 200, body = Health)))]
async fn readiness(State(rest): State<Rest>, _: NoQuery) -> Result<axum::Json<Health>, Refusal> {
    if rest.ending.has_come() {
        return Err(ec2vmm_cloud::Error::Unavailable.into());
    }
    Ok(axum::Json(Health { status: "ok".to_owned() }))
}

/// Shows metrics for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "daemon",
    responses((status = 200, content_type = "application/openmetrics-text", body = String)))]
async fn metrics(State(rest): State<Rest>, _: NoQuery) -> Result<impl IntoResponse, Refusal> {
    let text = rest.metrics.written(&rest.cloud.figures()?).map_err(|error| {
        tracing::error!(%error, "metrics cannot be written");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "metrics cannot be written")
    })?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

/// Shows this contract
#[utoipa::path(get, path = "/v1/openapi.json", tag = "daemon",
    responses((status = 200, body = serde_json::Value, content_type = "application/json")))]
async fn contract(_: NoQuery) -> impl IntoResponse {
    axum::Json(crate::openapi())
}
