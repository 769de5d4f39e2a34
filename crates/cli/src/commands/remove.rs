//! What `key rm` and `image rm` have in common.

use std::process::ExitCode;

use hyper::Method;

use crate::{
    Done,
    client::{Call, Client},
    error::Error,
};

/// Deletes each by name or id; where the daemon refuses one, the others still have their turn.
pub(super) fn all(client: &Client, kind: &str, names: &[String]) -> Done {
    let mut failed = None;
    for name in names {
        if let Err(error) = client.tell(&Call::new(Method::DELETE, &["v1", kind, name])) {
            let error = Error::from(error);
            error.report();
            failed = failed.or(Some(error.code()));
        }
    }
    match failed {
        Some(code) => Err(Error::Told(code)),
        None => Ok(ExitCode::SUCCESS),
    }
}
