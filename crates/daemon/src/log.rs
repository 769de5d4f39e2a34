//! The log: on standard error, for people or for programs.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt};

use crate::args::{Args, LogFormat};

/// From now on, what is told is written.
pub(crate) fn begin(args: &Args) {
    let filter = EnvFilter::try_new(&args.log);
    let wrong = filter.as_ref().err().map(ToString::to_string);
    let log = fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).init(),
    }
    if let Some(error) = wrong {
        tracing::warn!(error, filter = args.log, "the log's filter makes no sense: `info` is taken");
    }
}
