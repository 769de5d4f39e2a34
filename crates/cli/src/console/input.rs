//! Standard input on its way to the guest.
//!
//! A terminal is the machine's keyboard: some keys are ours (see [`super::keys`]), and what a guest does not
//! read is lost in the end, as on a serial line. Anything else is a stream: every byte goes to the guest,
//! only as fast as it reads, and the end of the stream means nothing.

use std::io::{self, IsTerminal};

use rustix::{io::Errno, stdio::stdin};

use super::{
    keys::{Key, Keys},
    terminal::{Raw, in_foreground},
};

/// Standard input.
#[derive(Debug)]
pub(crate) struct Input {
    source: Source,
    keys: Keys,
    /// On its way to the guest.
    pending: Vec<u8>,
}

#[derive(Debug)]
enum Source {
    /// A terminal that is ours to read.
    Keyboard(Raw),
    /// A terminal that another job reads, for now.
    Background,
    /// A file, a pipe, a socket.
    Stream,
    /// Nothing comes any more, or ever.
    Nothing,
}

/// What reading came to, beside what is now pending for the guest.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Typed {
    /// What is for us, in order.
    pub(crate) keys: Vec<Key>,
    /// The terminal has hung up.
    pub(crate) hung_up: bool,
}

impl Input {
    /// A terminal is read only where the guest's output is seen on one, too: else nobody could tell what
    /// they type, and Ctrl-C does what it does with every program.
    pub(crate) fn open(seen_on_terminal: bool) -> Self {
        let source = match (io::stdin().is_terminal(), seen_on_terminal) {
            (true, true) => Raw::enter().map_or(Source::Background, Source::Keyboard),
            (true, false) => Source::Nothing,
            (false, _) => Source::Stream,
        };
        Self { source, keys: Keys::default(), pending: Vec::new() }
    }

    /// The terminal does not end lines by itself now.
    pub(crate) fn is_raw(&self) -> bool {
        matches!(self.source, Source::Keyboard(_))
    }

    /// There is something to wait for on standard input.
    pub(crate) fn wants_more(&self) -> bool {
        match self.source {
            Source::Keyboard(_) => true,
            Source::Stream => self.pending.len() < STREAM_BYTES,
            Source::Background | Source::Nothing => false,
        }
    }

    /// After a stop the shell may have given the terminal to another job, or back to us.
    pub(crate) fn resume(&mut self) {
        match (&self.source, in_foreground()) {
            (Source::Keyboard(raw), true) => raw.resume(),
            (Source::Keyboard(_), false) => self.source = Source::Background,
            (Source::Background, true) => {
                self.source = Raw::enter().map_or(Source::Background, Source::Keyboard);
            }
            (Source::Background, false) | (Source::Stream | Source::Nothing, _) => {}
        }
    }

    /// Reads what is there.
    pub(crate) fn read(&mut self) -> Typed {
        let mut buffer = [0; STREAM_BYTES];
        let bytes = match rustix::io::read(stdin(), &mut buffer) {
            Ok(read) => buffer.get(..read).unwrap_or_default(),
            Err(Errno::INTR | Errno::WOULDBLOCK) => return Typed::default(),
            // A terminal that is gone, a folder, ...: nothing will come.
            Err(_) => &[],
        };
        match self.source {
            Source::Keyboard(_) if bytes.is_empty() => {
                self.source = Source::Nothing;
                Typed { hung_up: true, ..Typed::default() }
            }
            Source::Keyboard(_) => self.press(bytes),
            _ if bytes.is_empty() => {
                self.source = Source::Nothing;
                Typed::default()
            }
            _ => {
                self.pending.extend_from_slice(bytes);
                Typed::default()
            }
        }
    }

    fn press(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &byte in bytes {
            let (key, next) = self.keys.press(byte);
            self.keys = next;
            match key {
                Key::Send(byte) if self.pending.len() < KEYBOARD_BYTES => self.pending.push(byte),
                // The guest has not read for so long that more would not help it.
                Key::Send(_) | Key::Nothing => {}
                key => typed.keys.push(key),
            }
        }
        typed
    }

    /// What the guest is to read.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// So much of it is on its way.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.pending.drain(..bytes.min(self.pending.len()));
    }

    /// Nobody will read it.
    pub(crate) fn discard(&mut self) {
        self.pending.clear();
    }

    /// Gives the terminal back.
    pub(crate) fn close(&mut self) {
        self.source = Source::Nothing;
    }
}

const STREAM_BYTES: usize = 4096;
/// A paste, even a large one.
const KEYBOARD_BYTES: usize = 64 * 1024;
