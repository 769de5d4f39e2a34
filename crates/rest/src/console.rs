//! Serial consoles: what was shown, and a line to what is shown now.

use std::io;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use ec2vmm_rest_api::{CONSOLE_PROTOCOL, ConsoleOutput};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tracing::Instrument;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    bytes,
    extract::{NoQuery, Path},
    problem::Refusal,
    routes::Rest,
    stall::Endless,
};

pub(crate) fn routes() -> OpenApiRouter<Rest> {
    OpenApiRouter::new().routes(routes!(output)).routes(routes!(stream))
}

/// Shows what a serial console has shown
#[utoipa::path(get, path = "/v1/instances/{instance_id}/console", tag = "console",
    params(("instance_id" = String, Path, pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses((status = 200, body = ConsoleOutput)))]
async fn output(
    State(rest): State<Rest>,
    Path(id): Path,
    _: NoQuery,
) -> Result<axum::Json<ConsoleOutput>, Refusal> {
    let output = rest.cloud.console_output(&id).await?;
    Ok(axum::Json(ConsoleOutput {
        instance_id: output.instance.to_string(),
        timestamp: output.time,
        output: bytes::written(&output.bytes),
    }))
}

/// Opens a line to a serial console
///
/// Asks for an upgrade to `ec2vmm-console`; after the 101 the connection is the serial line, both ways. It
/// ends with the machine.
#[utoipa::path(get, path = "/v1/instances/{instance_id}/console/stream", tag = "console",
    params(("instance_id" = String, Path, pattern = "^i-([0-9a-f]{8}|[0-9a-f]{17})$")),
    responses(
        (status = 101, description = "The connection is the serial line"),
        (status = 409, body = ec2vmm_rest_api::Problem),
        (status = 426, body = ec2vmm_rest_api::Problem,
            headers(("upgrade" = String, description = "`ec2vmm-console`")))))]
async fn stream(
    State(rest): State<Rest>,
    Path(id): Path,
    _: NoQuery,
    mut request: Request,
) -> Result<Response<Body>, Refusal> {
    // First of all: that the instance is there matters more than how it was asked for.
    rest.cloud.instance(&id).await?;
    let wanted = is_upgrade(request.headers());
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>().filter(|_| wanted);
    let Some(upgrade) = upgrade else {
        return Err(Refusal::new(
            StatusCode::UPGRADE_REQUIRED,
            "UpgradeRequired",
            format!("a serial line is an upgrade of the connection to {CONSOLE_PROTOCOL}"),
        )
        .hint(format!(
            "send `Connection: Upgrade` and `Upgrade: {CONSOLE_PROTOCOL}`, or run `ec2vmm console {id}`"
        )));
    };
    let line = rest.cloud.console_stream(&id).await?;
    if let Some(endless) = request.extensions().get::<Endless>() {
        endless.allow();
    }
    let mut ending = rest.ending.clone();
    let talk = async move {
        let client = match upgrade.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => return tracing::debug!(%error, "the console's client is gone"),
        };
        tokio::select! {
            ended = talk(client, line) => match ended {
                Ok(()) => tracing::info!("console closed"),
                Err(error) => tracing::debug!(%error, "console broke off"),
            },
            () = ending.comes() => tracing::info!("console closed: the daemon ends"),
        }
    };
    tokio::spawn(talk.in_current_span());
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(CONSOLE_PROTOCOL));
    Ok(response)
}

/// Until one of the two is gone: the machine, or who looks at it.
async fn talk(client: TokioIo<Upgraded>, line: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let (mut typed, mut screen) = tokio::io::split(client);
    let (mut shown, mut keyboard) = tokio::io::split(line);
    tokio::select! {
        ended = tokio::io::copy(&mut shown, &mut screen) => ended?,
        ended = tokio::io::copy(&mut typed, &mut keyboard) => ended?,
    };
    screen.shutdown().await
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let names = |name: header::HeaderName, token: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    names(header::CONNECTION, "upgrade") && names(header::UPGRADE, CONSOLE_PROTOCOL)
}
