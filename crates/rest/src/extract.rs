//! What a request says: its path, its query, its body. As axum's own extractors, but every refusal is a
//! problem, nothing unknown is taken, and a body is bounded in size and in time.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Request, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use ec2vmm_rest_api::IDEMPOTENCY_HEADER;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::problem::Refusal;

/// The one parameter in the path.
pub(crate) struct Path(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(name)| Self(name)).map_err(|rejection: PathRejection| {
            Refusal::invalid(format!("the path makes no sense: {}", rejection.body_text()))
        })
    }
}

/// The query, parameters of which may be repeated where the type has a list.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let query = parts.uri.query().unwrap_or_default();
        serde_html_form::from_str(query).map(Self).map_err(|error| {
            Refusal::invalid(format!("the query makes no sense: {error}"))
                .hint("see /v1/openapi.json for what can be asked")
        })
    }
}

/// A query of a request that has none.
pub(crate) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        match parts.uri.query().unwrap_or_default() {
            "" => Ok(Self),
            _ => Err(Refusal::invalid("this request has no query parameters")),
        }
    }
}

/// A JSON document: an object.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        if !is_json(request.headers()) {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UnsupportedMediaType",
                "the body is not declared to be JSON",
            )
            .hint("send `Content-Type: application/json`"));
        }
        let bytes = read(request.into_body()).await?;
        let fields: serde_json::Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|error| match error.classify() {
                serde_json::error::Category::Data => does_not_fit(&error),
                _ => Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "MalformedBody",
                    format!("the body is not JSON: {error}"),
                ),
            })?;
        let fields = fields.into_iter().map(|(name, value)| (name, with_integers(value))).collect();
        // By way of an object: by itself, serde reads a list of the fields' values as well.
        T::deserialize(Value::Object(fields)).map(Self).map_err(|error| does_not_fit(&error))
    }
}

/// The idempotency key, if there is one.
pub(crate) struct IdempotencyKey(pub(crate) Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let mut values = parts.headers.get_all(IDEMPOTENCY_HEADER).iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        let key = value.to_str().ok().filter(|key| {
            (1..=KEY_CHARS_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
        });
        match (key, values.next()) {
            (Some(key), None) => Ok(Self(Some(key.to_owned()))),
            _ => Err(Refusal::invalid(format!(
                "the header {IDEMPOTENCY_HEADER} is not one of 1 to {KEY_CHARS_MAX} visible ASCII characters"
            ))),
        }
    }
}

/// To JSON Schema `2048.0` is an integer, and some languages write theirs so.
fn with_integers(value: Value) -> Value {
    match value {
        Value::Number(number) => {
            let whole =
                number.as_f64().filter(|n| number.is_f64() && n.fract() == 0.0 && n.abs() < INTEGER_MAX);
            // As it is written without a fraction, which is exact up to there.
            whole
                .and_then(|whole| format!("{whole:.0}").parse().ok())
                .map_or(Value::Number(number), Value::Number)
        }
        Value::Array(values) => values.into_iter().map(with_integers).collect(),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (name, with_integers(value))).collect())
        }
        other => other,
    }
}

fn does_not_fit(error: &serde_json::Error) -> Refusal {
    Refusal::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "InvalidParameterValue",
        format!("the body is not what this request takes: {error}"),
    )
    .hint("see /v1/openapi.json for what can be asked")
}

fn is_json(headers: &HeaderMap) -> bool {
    let declared = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = declared.and_then(|value| value.split(';').next()).map(str::trim);
    media_type.is_some_and(|media_type| {
        let media_type = media_type.to_ascii_lowercase();
        media_type == "application/json"
            || (media_type.starts_with("application/") && media_type.ends_with("+json"))
    })
}

async fn read(body: Body) -> Result<axum::body::Bytes, Refusal> {
    let whole = tokio::time::timeout(BODY_TIME_MAX, Limited::new(body, BODY_BYTES_MAX).collect());
    match whole.await {
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "RequestTimeout",
            format!("the body did not come within {} s", BODY_TIME_MAX.as_secs()),
        )),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("the body is longer than {BODY_BYTES_MAX} bytes"),
        )),
        Ok(Err(error)) => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "MalformedBody",
            format!("the body broke off: {error}"),
        )),
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
    }
}

/// The most that a body may have, bytes: user data of 16 KiB and fifty tags, many times over.
pub(crate) const BODY_BYTES_MAX: usize = 256 * 1024;
/// 2^53: whole numbers below are exact as 64-bit floating point.
const INTEGER_MAX: f64 = 9_007_199_254_740_992.0;
/// How long a body may take to come.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);
/// EC2's limit of client tokens.
const KEY_CHARS_MAX: usize = 64;
