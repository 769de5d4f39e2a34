//! Bytes that arrive, kept, and waited for.

use std::{
    fmt,
    io::Read,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// All that was read from a stream so far. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Transcript(Arc<(Mutex<Heard>, Condvar)>);

#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    at_end: bool,
}

impl Transcript {
    /// Reads `stream` to its end, on a thread.
    pub(crate) fn of(mut stream: impl Read + Send + 'static) -> Self {
        let transcript = Self::default();
        let written = transcript.clone();
        thread::spawn(move || {
            let mut piece = [0; 4096];
            loop {
                let read = match stream.read(&mut piece) {
                    Ok(read) => read,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    // A pseudo-terminal ends so.
                    Err(_) => 0,
                };
                let (heard, news) = &*written.0;
                let mut heard = heard.lock().unwrap();
                heard.bytes.extend_from_slice(&piece[..read]);
                heard.at_end = read == 0;
                news.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        transcript
    }

    /// Everything from `start` on.
    pub(crate) fn bytes_from(&self, start: usize) -> Vec<u8> {
        let heard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.bytes.get(start..).unwrap_or_default().to_vec()
    }

    /// Everything from `start` on.
    pub(crate) fn text_from(&self, start: usize) -> String {
        String::from_utf8_lossy(&self.bytes_from(start)).into_owned()
    }

    /// Waits until `find` finds something in what came from `start` on.
    pub(crate) fn wait<T>(
        &self,
        start: usize,
        within: Duration,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, Missing> {
        let deadline = Instant::now() + within;
        let (heard, news) = &*self.0;
        let mut heard = heard.lock().unwrap();
        loop {
            if let Some(found) = find(&String::from_utf8_lossy(&heard.bytes[start.min(heard.bytes.len())..]))
            {
                return Ok(found);
            }
            if heard.at_end {
                return Err(Missing::AtEnd);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Missing::TooLate(within));
            }
            heard = news.wait_timeout(heard, left).unwrap().0;
        }
    }
}

/// Why nothing was found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Missing {
    AtEnd,
    TooLate(Duration),
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtEnd => formatter.write_str("the output ended"),
            Self::TooLate(within) => write!(formatter, "not within {} s", within.as_secs()),
        }
    }
}
