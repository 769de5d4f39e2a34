//! What is answered when a request fails (RFC 9457).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request failed. Nothing was changed by it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// What kind of problem: `urn:ec2vmm:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:ec2vmm:problem:InvalidInstanceID.NotFound")]
    pub kind: String,
    /// The HTTP status in words.
    #[schema(example = "Not Found")]
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599, example = 404)]
    pub status: u16,
    /// What happened, in EC2's words where it has some.
    #[schema(example = "The instance ID 'i-0123456789abcdef0' does not exist")]
    pub detail: String,
    /// This occurrence: `urn:ec2vmm:request:` and the request's id, which the daemon's log repeats.
    pub instance: String,
    /// EC2's error code: what programs branch on.
    #[schema(example = "InvalidInstanceID.NotFound")]
    pub code: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub hint: Option<String>,
}

/// Media type of a [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";
