//! Tells the owner of the machine what happens: [`Event`]s, one JSON document a line.

use std::{fs::File, io::Write, sync::Arc, time::Instant};

use ec2vmm_vmm_api::{Event, Exit, Failure};

/// The stream of events, if anybody wants it.
#[derive(Clone, Debug)]
pub struct Report {
    born: Instant,
    stream: Option<Arc<File>>,
}

impl Report {
    /// Events go to `stream`; their times count from `born`.
    pub fn new(born: Instant, stream: Option<File>) -> Self {
        Self { born, stream: stream.map(Arc::new) }
    }

    /// Microseconds since the process started.
    pub fn us(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Tells of an event, made from the time at which it happened. An owner who does not listen any
    /// more is told no more.
    pub fn tell(&mut self, event: impl FnOnce(u64) -> Event) {
        let event = event(self.us());
        log::debug!("{event:?}");
        let Some(mut stream) = self.stream.as_deref() else { return };
        let written = serde_json::to_vec(&event).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            stream.write_all(&line)
        });
        if let Err(error) = written {
            log::warn!("events go unheard from here: {error}");
            self.stream = None;
        }
    }

    /// Tells of the end of a machine that has failed; the log, where nobody hears of events.
    pub fn failed(&mut self, failure: Failure) -> Exit {
        if self.stream.is_none() {
            log::error!("{}", failure.message);
        }
        let exit = Exit::Failed(failure.kind);
        self.tell(|us| Event::Ended { us, exit, failure: Some(failure) });
        exit
    }
}
