//! Answers of any length, straight into a file.

use std::io::Write;

use http_body_util::BodyExt;
use tokio::time::timeout;

use super::{ANSWER_PATIENCE, Call, Client, Error, broken, refusal, send};

/// Why a download is not complete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The daemon's end of it.
    #[error(transparent)]
    Daemon(#[from] Error),
    /// Our end of it.
    #[error(transparent)]
    Write(#[from] std::io::Error),
}

impl Client {
    /// Writes the answer as it comes, and says how many bytes it had. It may take for ever as long as it
    /// goes on.
    pub(crate) fn download(&self, call: &Call, to: &mut impl Write) -> Result<u64, Broken> {
        let slow = || Error::Slow(ANSWER_PATIENCE);
        let answer = async { refusal(send(&self.socket, call, &[]).await?).await };
        let response = self.runtime.block_on(async { timeout(ANSWER_PATIENCE, answer).await });
        let mut body = response.map_err(|_| slow())??.into_body();
        let mut written = 0u64;
        loop {
            let frame = self.runtime.block_on(async { timeout(ANSWER_PATIENCE, body.frame()).await });
            let Some(frame) = frame.map_err(|_| slow())? else { return Ok(written) };
            let bytes = frame.map_err(broken)?.into_data().unwrap_or_default();
            to.write_all(&bytes)?;
            written = written.saturating_add(bytes.len() as u64);
        }
    }
}
