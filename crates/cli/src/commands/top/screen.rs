//! The whole terminal, for as long as a live table is shown.
//!
//! Invariant: the terminal shows what it showed before, and is in the mode in which it was found, when the
//! [`Live`] is dropped.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    stdio::stdin,
};

use crate::{
    console::{signals::Signals, stream::timespec, terminal::Raw},
    error::{Error, failed_to},
};

/// A terminal that is ours.
#[derive(Debug)]
pub(super) struct Live {
    signals: std::cell::RefCell<Signals>,
    /// Nothing where standard input is no terminal: then only signals leave.
    keyboard: Option<Raw>,
}

/// How a pause ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pause {
    /// Time is up.
    Over,
    /// Somebody has seen enough.
    Left,
    /// A signal; the exit status.
    Signal(u8),
}

impl Live {
    pub(super) fn enter() -> Result<Self, Error> {
        let signals = Signals::catch()?;
        print(ENTER)?;
        Ok(Self { signals: signals.into(), keyboard: Raw::enter() })
    }

    /// Shows a frame in place of the last one.
    pub(super) fn draw(&self, frame: &str) -> Result<(), Error> {
        let lines: String = frame.lines().map(|line| format!("{line}{CLEAR_LINE}\r\n")).collect();
        print(&format!("{HOME}{}{CLEAR_REST}", lines.trim_end_matches("\r\n")))
    }

    /// Waits, unless a key or a signal comes.
    pub(super) fn pause(&self, pause: Duration) -> Result<Pause, Error> {
        let until = Instant::now() + pause;
        loop {
            let mut signals = self.signals.borrow_mut();
            let left = until.saturating_duration_since(Instant::now());
            let mut polled = vec![PollFd::new(&*signals, PollFlags::IN)];
            let stdin = stdin();
            if self.keyboard.is_some() {
                polled.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
            match poll(&mut polled, timespec(left).as_ref()) {
                Ok(0) => return Ok(Pause::Over),
                Ok(_) => {}
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed_to("wait for a key")(errno.into())),
            }
            let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
            drop(polled);
            let came = signals.take();
            if let (true, Some(raw)) = (came.continued, &self.keyboard) {
                print(ENTER)?;
                raw.resume();
            }
            if let Some(signal) = came.ending {
                return Ok(Pause::Signal(SIGNAL_BASE.saturating_add(signal)));
            }
            if ready.get(1) == Some(&true) && is_leave() {
                return Ok(Pause::Left);
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.keyboard = None;
        // A terminal that is gone shows nothing.
        let _ = print(LEAVE);
    }
}

/// q, Ctrl-C, Ctrl-D, or a terminal that has hung up.
fn is_leave() -> bool {
    let mut keys = [0; 64];
    match rustix::io::read(stdin(), &mut keys) {
        Ok(0) => true,
        Ok(read) => keys.iter().take(read).any(|key| matches!(key, b'q' | b'Q' | 3 | 4)),
        Err(Errno::INTR | Errno::WOULDBLOCK) => false,
        Err(_) => true,
    }
}

fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Error::OutputClosed,
        _ => failed_to("write to the terminal")(error),
    })
}

/// The other screen, without a cursor (xterm's private modes 1049 and 25).
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";
const SIGNAL_BASE: u8 = 128;
