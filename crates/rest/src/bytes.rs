//! Bytes in JSON: base64 (RFC 4648 section 4), as EC2 has them.

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::problem::Refusal;

/// Bytes as they are written.
pub(crate) fn written(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Bytes that were written.
pub(crate) fn read(name: &str, written: &str) -> Result<Vec<u8>, Refusal> {
    BASE64_STANDARD.decode(written).map_err(|error| {
        Refusal::invalid(format!("`{name}` is not base64: {error}")).hint("encode it: `base64 -w0 FILE`")
    })
}
