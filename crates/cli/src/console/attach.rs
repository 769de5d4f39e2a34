//! This terminal on a line to a serial console: one poll loop between the line, the terminal and signals.
//!
//! Invariants: nothing waits but the poll. The line's end is not the end of the session; whoever owns it
//! may come with another line. The terminal is given back whatever happens (see [`super::terminal`]).

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    stdio::stdin,
};

use super::{
    input::Input,
    keys::Key,
    signals::{HANG_UP, Signals},
    stream::{State, Stream},
};
use crate::error::{Error, failed_to};

/// A console that is looked at, and typed on if it is attached.
#[derive(Debug)]
pub(crate) struct Attached {
    signals: Signals,
    stdout: Stream,
    input: Option<Input>,
}

/// Why a line is left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Left {
    /// By key.
    ByKey,
    /// The line has ended.
    LineEnded,
    /// By a signal.
    Signal(u8),
    /// Whoever read the output reads no more.
    OutputClosed,
}

impl Attached {
    /// Takes the terminal, if what is typed shall go to the guest.
    pub(crate) fn begin(typed: bool) -> Result<Self, Error> {
        let signals = Signals::catch()?;
        let stdout = Stream::stdout().map_err(failed_to("use standard output"))?;
        let seen_on_terminal = stdout.is_terminal();
        Ok(Self { signals, stdout, input: typed.then(|| Input::open(seen_on_terminal)) })
    }

    /// The keys are ours to tell of.
    pub(crate) fn is_keyboard(&self) -> bool {
        self.input.as_ref().is_some_and(Input::is_raw)
    }

    /// Shows what was shown before.
    pub(crate) fn show(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.write(bytes)
    }

    /// Passes bytes both ways until the line or the session ends.
    pub(crate) fn follow(&mut self, line: &OwnedFd) -> Result<Left, Error> {
        let mut ended = false;
        loop {
            if ended && self.stdout.is_flushed() {
                return Ok(Left::LineEnded);
            }
            let [signal, talks, types, prints] = self.wait(line.as_fd(), ended)?;
            if !signal.is_empty()
                && let Some(left) = self.hear_signals()
            {
                return Ok(left);
            }
            if !talks.is_empty() {
                self.send(line.as_fd());
                ended = self.hear(line.as_fd())?;
            }
            if !types.is_empty()
                && let Some(left) = self.read_input()?
            {
                return Ok(left);
            }
            self.stdout.notice(prints).map_err(failed_to("write to standard output"))?;
            match self.stdout.state() {
                State::Open => {}
                State::Closed => return Ok(Left::OutputClosed),
                State::HungUp => return Ok(Left::Signal(HANG_UP)),
            }
        }
    }

    /// What has happened to signals, line, input and output.
    fn wait(&self, line: BorrowedFd<'_>, ended: bool) -> Result<[PollFlags; 4], Error> {
        let mut talk = PollFlags::empty();
        talk.set(PollFlags::IN, self.stdout.has_room());
        talk.set(PollFlags::OUT, self.input.as_ref().is_some_and(|input| !input.pending().is_empty()));
        let types = self.input.as_ref().is_some_and(Input::wants_more);
        let sources = [
            (true, self.signals.as_fd(), PollFlags::IN),
            (!ended && !talk.is_empty(), line, talk),
            (types && !ended, stdin(), PollFlags::IN),
            (true, self.stdout.as_fd(), self.stdout.interest()),
        ];
        let mut polled: Vec<PollFd<'_>> = sources
            .iter()
            .filter(|(wanted, ..)| *wanted)
            .map(|(_, descriptor, flags)| PollFd::from_borrowed_fd(*descriptor, *flags))
            .collect();
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok([PollFlags::empty(); 4]),
            Err(errno) => return Err(failed_to("wait for the console")(errno.into())),
        }
        let mut seen = polled.iter().map(PollFd::revents);
        Ok(sources.map(|(wanted, ..)| if wanted { seen.next() } else { None }.unwrap_or(PollFlags::empty())))
    }

    fn hear_signals(&mut self) -> Option<Left> {
        let came = self.signals.take();
        if came.continued
            && let Some(input) = &mut self.input
        {
            input.resume();
        }
        came.ending.map(Left::Signal)
    }

    /// Says whether the line has ended.
    fn hear(&mut self, line: BorrowedFd<'_>) -> Result<bool, Error> {
        if !self.stdout.has_room() {
            return Ok(false);
        }
        let mut buffer = vec![0; PIECE_BYTES];
        match rustix::io::read(line, &mut buffer) {
            Ok(0) => Ok(true),
            Ok(read) => {
                self.write(buffer.get(..read).unwrap_or_default())?;
                Ok(false)
            }
            Err(Errno::INTR | Errno::WOULDBLOCK) => Ok(false),
            // The other end is gone, in whichever way.
            Err(_) => Ok(true),
        }
    }

    fn read_input(&mut self) -> Result<Option<Left>, Error> {
        let Some(input) = &mut self.input else { return Ok(None) };
        let typed = input.read();
        if typed.hung_up {
            return Ok(Some(Left::Signal(HANG_UP)));
        }
        for key in typed.keys {
            match key {
                Key::Leave => return Ok(Some(Left::ByKey)),
                Key::Help | Key::PowerButton => self.write(HELP.as_bytes())?,
                Key::Send(_) | Key::Nothing => {}
            }
        }
        Ok(None)
    }

    fn send(&mut self, line: BorrowedFd<'_>) {
        let Some(input) = &mut self.input else { return };
        while !input.pending().is_empty() {
            match rustix::io::write(line, input.pending()) {
                Ok(sent) => input.sent(sent),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return,
                // Reading will say so.
                Err(_) => input.discard(),
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stdout.write(bytes).map_err(failed_to("write to standard output"))
    }

    /// Gives the terminal back, with the cursor where a line starts.
    pub(crate) fn end(mut self) -> Result<(), Error> {
        if let Some(input) = &mut self.input {
            input.close();
        }
        if self.stdout.is_terminal() && self.stdout.is_within_line() {
            self.write(b"\r\n")?;
        }
        self.stdout.flush_until(Instant::now() + PATIENCE).map_err(failed_to("write to standard output"))
    }
}

/// The keys, for people; lines end as a raw terminal wants them.
const HELP: &str = "\r\n\
    Ctrl-A x       leave: the instance runs on\r\n\
    Ctrl-A h       list these keys\r\n\
    Ctrl-A Ctrl-A  send one Ctrl-A to the guest (also Ctrl-A a)\r\n\
    The power button is `ec2vmm stop`.\r\n";
const PATIENCE: Duration = Duration::from_secs(3);
const PIECE_BYTES: usize = 64 * 1024;
