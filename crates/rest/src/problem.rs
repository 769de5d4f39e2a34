//! Errors as the client reads them: RFC 9457, with EC2's codes. Whatever goes wrong, in whichever layer,
//! leaves as one of these.

use axum::{
    Json,
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use ec2vmm_cloud::{Error, error::Fault};
use ec2vmm_rest_api::{PROBLEM_MEDIA_TYPE, Problem};

/// Why a request was refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code}: {detail}")]
pub(crate) struct Refusal {
    /// HTTP's word for it.
    pub(crate) status: StatusCode,
    /// EC2's word for it.
    pub(crate) code: &'static str,
    /// What happened.
    pub(crate) detail: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Refusal {
    /// A refusal with no hint.
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), hint: None }
    }

    /// With a hint.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A parameter that makes no sense.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidParameterValue", detail)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = status_of(&error);
        if status.is_server_error() {
            // People read that it is our fault; why is for the log.
            tracing::error!(error = &error as &dyn std::error::Error, "a request failed");
        }
        Self { status, code: error.code(), detail: error.to_string(), hint: error.hint() }
    }
}

/// Every error of the cloud, so that a new one does not compile unanswered.
fn status_of(error: &Error) -> StatusCode {
    match error {
        Error::NotFound { .. } | Error::UnknownTypes(_) => StatusCode::NOT_FOUND,
        Error::Duplicate { .. }
        | Error::IncorrectState { .. }
        | Error::Protected { .. }
        | Error::Capacity { .. }
        | Error::NoAddresses { .. }
        | Error::AddressInUse(_)
        | Error::NoMachine(_)
        | Error::TagLimit(_)
        | Error::TokenReused
        | Error::VolumeInUse { .. } => StatusCode::CONFLICT,
        _ => match error.fault() {
            Fault::Client => StatusCode::BAD_REQUEST,
            Fault::Capacity => StatusCode::CONFLICT,
            Fault::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Fault::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        },
    }
}

/// The body names the request: [`crate::trace`] puts its id in.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let status = self.status;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes a refusal as the body of its response.
pub(crate) fn written(refusal: &Refusal, request_id: &str) -> Response<Body> {
    let problem = Problem {
        kind: format!("urn:ec2vmm:problem:{}", refusal.code),
        title: refusal.status.canonical_reason().unwrap_or("Error").to_owned(),
        status: refusal.status.as_u16(),
        detail: refusal.detail.clone(),
        instance: format!("urn:ec2vmm:request:{request_id}"),
        code: refusal.code.to_owned(),
        hint: refusal.hint.clone(),
    };
    let mut response = (refusal.status, Json(problem)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
    response
}
