//! Serial consoles.

use ec2vmm_model::Time;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a serial console has shown.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ConsoleOutput {
    /// The instance.
    pub instance_id: String,
    /// When it was looked at.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Time,
    /// The end of what was printed since the last start, base64: at most 64 KiB before the encoding. Guests
    /// print bytes, not always text.
    pub output: String,
}

/// What `GET /v1/instances/{instance_id}/console/stream` is upgraded to (`Connection: Upgrade`,
/// `Upgrade: ec2vmm-console`; RFC 9110 section 7.8). After the 101 the connection is the serial line: what
/// the guest prints from then on, and what it shall read. It ends with the
/// machine, or when the client closes its side.
pub const CONSOLE_PROTOCOL: &str = "ec2vmm-console";
