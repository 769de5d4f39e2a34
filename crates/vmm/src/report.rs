//! Tells the owner of the machine what happens: [`Event`]s, one JSON document a line.
//!
//! Three ways, each of which may be missing: a stream, a file that holds the last event, and the control
//! socket for those who come later. None of them holds the machine up.
//!
//! Whoever has a [`Report`] can tell: copies of it are one and the same.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ec2vmm_vmm_api::{Event, Exit, Failure, config::RECORD_BYTES, control::EVENTS_KEPT};

use crate::{
    event_loop::{EventLoop, Source},
    outlet::Outlet,
};

/// Where events go.
#[derive(Clone)]
pub struct Report {
    born: Instant,
    ways: Arc<Mutex<Ways>>,
}

#[derive(Default)]
struct Ways {
    stream: Option<Outlet>,
    record: Option<File>,
    /// The last lines.
    kept: VecDeque<Vec<u8>>,
}

impl Report {
    /// Times of events count from `born`; nobody hears of them yet.
    pub fn new(born: Instant) -> Self {
        Self { born, ways: Arc::default() }
    }

    /// Events go to `stream` from now on.
    ///
    /// # Errors
    /// The descriptor cannot be made nonblocking.
    pub fn stream_to(&self, stream: OwnedFd) -> io::Result<()> {
        self.ways().stream = Some(Outlet::new(stream, STREAM_BYTES_MAX)?);
        Ok(())
    }

    /// The last event is in `record` from now on.
    pub fn record_in(&self, record: OwnedFd) {
        self.ways().record = Some(record.into());
    }

    /// Has the loop call [`Self::ready`].
    ///
    /// # Errors
    /// The stream cannot be waited for.
    pub fn watch(&self, event_loop: &EventLoop) -> io::Result<()> {
        let ways = self.ways();
        let Some(stream) = &ways.stream else { return Ok(()) };
        match event_loop.watch_writable_edges(stream.as_raw_fd(), Source::Events) {
            // A plain file is always ready.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            result => result,
        }
    }

    /// Writes what the stream did not take before.
    pub fn ready(&self) {
        let mut ways = self.ways();
        if let Some(stream) = &mut ways.stream
            && let Err(error) = stream.flush()
        {
            ways.lose_stream(&error);
        }
    }

    /// Microseconds since the process started.
    pub fn us(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Tells of an event, made from the time at which it happened. Returns it as a line, for the control
    /// socket. An owner who does not listen any more is told no more.
    pub fn tell(&self, event: impl FnOnce(u64) -> Event) -> Vec<u8> {
        self.ways().tell(&event(self.us()))
    }

    /// Tells of the end of a machine that has failed; the log, where nobody hears of events.
    pub fn failed(&self, failure: Failure) -> (Exit, Vec<u8>) {
        let mut ways = self.ways();
        if ways.stream.is_none() {
            log::error!("{}", failure.message);
        }
        let exit = Exit::Failed(failure.kind);
        (exit, ways.tell(&Event::Ended { us: self.us(), exit, failure: Some(failure) }))
    }

    /// The last [`EVENTS_KEPT`] events, one a line.
    pub fn kept(&self) -> Vec<u8> {
        self.ways().kept.iter().flatten().copied().collect()
    }

    /// Writes what the stream has not taken yet, for a slow reader too, but not for long.
    pub fn finish(&self) {
        let mut ways = self.ways();
        if let Some(stream) = &mut ways.stream
            && let Err(error) = stream.finish(Instant::now() + FINISH_MAX)
        {
            ways.lose_stream(&error);
        }
    }

    /// Nobody touches guest memory while he holds it, for which he might have to wait.
    fn ways(&self) -> MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ways {
    fn tell(&mut self, event: &Event) -> Vec<u8> {
        log::debug!("{event:?}");
        let line = line(event);
        if let Some(stream) = &mut self.stream {
            let before = stream.dropped_bytes();
            let put = stream.put(&line);
            let whole = stream.dropped_bytes() == before;
            match put {
                Ok(()) if whole => {}
                // What comes after a gap would make no sense.
                Ok(()) => self.lose_stream(&io::ErrorKind::TimedOut.into()),
                Err(error) => self.lose_stream(&error),
            }
        }
        if let Some(record) = &self.record
            && let Err(error) = record.write_all_at(&block(event), 0)
        {
            log::warn!("recording an event: {error}");
        }
        if self.kept.len() >= EVENTS_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(line.clone());
        line
    }

    fn lose_stream(&mut self, error: &io::Error) {
        log::warn!("events go unheard from here: {error}");
        self.stream = None;
    }
}

fn line(event: &Event) -> Vec<u8> {
    match serde_json::to_vec(event) {
        Ok(mut line) => {
            line.push(b'\n');
            line
        }
        Err(error) => {
            log::error!("writing an event as JSON: {error}");
            Vec::new()
        }
    }
}

/// The event as a line of [`RECORD_BYTES`]. What people wrote into it is cut until it fits.
fn block(event: &Event) -> Vec<u8> {
    let len = usize::try_from(RECORD_BYTES).unwrap_or(usize::MAX);
    let mut event = event.clone();
    let mut text = line(&event);
    let mut limit = len;
    while text.len() > len && limit > 0 {
        limit /= 2;
        cut(&mut event, limit);
        text = line(&event);
    }
    text.pop();
    text.resize(len.saturating_sub(1), b' ');
    text.push(b'\n');
    text
}

fn cut(event: &mut Event, limit: usize) {
    let shorten = |text: &mut String| {
        let end = (0..=limit.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or_default());
    };
    match event {
        Event::Loaded { booted, .. } => {
            shorten(&mut booted.cmdline);
            shorten(&mut booted.kernel);
            booted.initrd.iter_mut().for_each(shorten);
        }
        Event::Ended { failure: Some(failure), .. } => {
            shorten(&mut failure.message);
            failure.hint.iter_mut().for_each(shorten);
        }
        Event::Sandboxed { .. }
        | Event::Running { .. }
        | Event::Restored { .. }
        | Event::Reset { .. }
        | Event::Paused { .. }
        | Event::Resumed { .. }
        | Event::Attached { .. }
        | Event::Detached { .. }
        | Event::Stuck { .. }
        | Event::Recovered { .. }
        | Event::WorkingSetRecorded { .. }
        | Event::Panicked { .. }
        | Event::Ended { .. } => {}
    }
}

/// A few hundred events.
const STREAM_BYTES_MAX: usize = 64 * 1024;
/// How long the last event waits for a slow reader.
const FINISH_MAX: Duration = Duration::from_millis(900);

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Seek},
        os::unix::net::UnixStream,
        time::Instant,
    };

    use ec2vmm_vmm_api::{
        Event, Failure, FailureKind,
        config::RECORD_BYTES,
        control::{Booted, EVENTS_KEPT},
    };

    use super::Report;

    fn read(mut file: &std::fs::File) -> String {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_record_holds_the_last_event_whatever_its_size() {
        let file = tempfile::tempfile().unwrap();
        let report = Report::new(Instant::now());
        report.record_in(file.try_clone().unwrap().into());
        let booted = Booted { cmdline: "\u{1}ä".repeat(9000), ..Booted::default() };
        report.tell(|us| Event::Loaded { us, booted });
        assert!(matches!(serde_json::from_str(&read(&file)).unwrap(), Event::Loaded { .. }));
        report.tell(|us| Event::Running { us });
        let text = read(&file);
        assert_eq!(text.len() as u64, RECORD_BYTES);
        assert!(text.ends_with(" \n"));
        assert!(matches!(serde_json::from_str(&text).unwrap(), Event::Running { .. }));
        let message = "why ".repeat(2000);
        report.failed(Failure { kind: FailureKind::NoKernel, message, hint: Some("so".into()) });
        let Event::Ended { failure: Some(failure), .. } = serde_json::from_str(&read(&file)).unwrap() else {
            panic!("{}", read(&file));
        };
        assert!(failure.message.starts_with("why why"));
        assert_eq!((failure.kind, failure.hint.as_deref()), (FailureKind::NoKernel, Some("so")));
    }

    #[test]
    fn an_owner_who_never_reads_is_told_no_more() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let report = Report::new(Instant::now());
        report.stream_to(writer.into()).unwrap();
        for _ in 0..20_000 {
            report.tell(|us| Event::Reset { us });
        }
        assert!(report.ways().stream.is_none());
        report.finish();
        assert_eq!(report.kept().split_inclusive(|&byte| byte == b'\n').count(), EVENTS_KEPT);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let first = text.lines().next().unwrap();
        assert!(matches!(serde_json::from_str(first).unwrap(), Event::Reset { .. }));
    }
}
