//! A stream of events from the daemon.

use std::{collections::VecDeque, time::Duration};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{runtime::Runtime, time::timeout};

use super::{
    Error, broken,
    sse::{Decoder, Message, TooLong},
};

/// Events as they come, until the daemon goes away.
#[derive(Debug)]
pub(crate) struct Events<'a> {
    runtime: &'a Runtime,
    body: Incoming,
    decoder: Decoder,
    ready: VecDeque<Message>,
}

/// What came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Came {
    /// An event.
    Message(Message),
    /// Nothing, in the time that was given.
    Nothing,
    /// The daemon has said all that it will.
    End,
}

impl<'a> Events<'a> {
    pub(super) fn new(runtime: &'a Runtime, body: Incoming) -> Self {
        Self { runtime, body, decoder: Decoder::default(), ready: VecDeque::new() }
    }

    /// Waits for the next one; for ever, if no time is given. A daemon that falls silent for longer than it
    /// ever does is gone.
    pub(crate) fn next(&mut self, patience: Option<Duration>) -> Result<Came, Error> {
        let mut silence = SILENCE_MAX;
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(Came::Message(message));
            }
            let wait = patience.map_or(silence, |patience| patience.min(silence));
            let frame = self.runtime.block_on(async { timeout(wait, self.body.frame()).await });
            match frame {
                Err(_) if patience.is_some_and(|patience| patience <= silence) => return Ok(Came::Nothing),
                Err(_) => return Err(Error::Gone(None)),
                Ok(None) => return Ok(Came::End),
                Ok(Some(Err(error))) => return Err(broken(error)),
                Ok(Some(Ok(frame))) => {
                    let bytes = frame.into_data().unwrap_or_default();
                    let came = self
                        .decoder
                        .feed(&bytes)
                        .map_err(|TooLong| Error::Nonsense("an event that is longer than any".to_owned()))?;
                    self.ready.extend(came);
                    silence = SILENCE_MAX;
                }
            }
        }
    }
}

/// The daemon sends a comment every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(60);
