//! Connects the guest's serial port with whoever looks at the console.
//!
//! What the guest prints waits in a bounded ring, what is typed in one small buffer: neither side
//! waits for the other, and neither can make the machine grow.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use ec2vmm_devices::{
    console::{CAPACITY, ConsoleOutput, Drained},
    serial::Serial,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};

use crate::event_loop::{EventLoop, Source};

/// The console of a machine, for its whole life.
pub struct Console {
    output: Arc<ConsoleOutput>,
    serial: Arc<Serial>,
    /// Nonblocking. None where nobody looks, or nobody looks any more.
    terminal: Option<File>,
    /// Typed, but not yet taken by the guest.
    typed: Vec<u8>,
    typed_bytes: u64,
}

impl Console {
    /// A console whose other side is `terminal`.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new(terminal: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(terminal) = &terminal {
            let flags = rustix::fs::fcntl_getfl(terminal)?;
            rustix::fs::fcntl_setfl(terminal, flags | OFlags::NONBLOCK)?;
        }
        let output = Arc::new(ConsoleOutput::new(CAPACITY)?);
        let serial = Arc::new(Serial::new(Arc::clone(&output))?);
        Ok(Self { output, serial, terminal: terminal.map(File::from), typed: Vec::new(), typed_bytes: 0 })
    }

    /// The guest's side.
    pub fn serial(&self) -> &Arc<Serial> {
        &self.serial
    }

    /// Has the loop call [`Self::ready`].
    ///
    /// # Errors
    /// The descriptors cannot be waited for.
    pub fn watch(&self, event_loop: &EventLoop) -> io::Result<()> {
        // Not its edges: emptying an eventfd is an edge too, and would wake the loop once more.
        event_loop.watch(self.output.ready().as_raw_fd(), Source::ConsoleOutput)?;
        event_loop.watch(self.serial.room().as_raw_fd(), Source::ConsoleInput)?;
        let Some(terminal) = &self.terminal else { return Ok(()) };
        match event_loop.watch_edges(terminal.as_raw_fd(), Source::Console) {
            // A plain file is always ready for output, and has no input to wait for.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            result => result,
        }
    }

    /// Moves what can be moved.
    pub fn ready(&mut self, source: Source) {
        match source {
            Source::ConsoleOutput => self.print(),
            Source::ConsoleInput => {
                // Emptied first: room that the guest makes later is told anew.
                let _ = self.serial.room().read();
                self.read();
            }
            _ => {
                self.print();
                self.read();
            }
        }
    }

    /// The guest's serial port is as born; what was typed before is not for the next system.
    pub fn reset(&mut self) {
        self.serial.reset();
        self.typed.clear();
    }

    /// Prints what the guest has left behind, as far as somebody takes it.
    pub fn finish(&mut self) {
        let deadline = Instant::now() + FINISH_MAX;
        loop {
            self.print();
            let Some(terminal) = self.terminal.as_ref().filter(|_| !self.output.is_empty()) else { return };
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            let timeout = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(terminal, PollFlags::OUT)], Some(&timeout)) {
                Ok(0) => return,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return log::warn!("waiting for the console: {error}"),
            }
        }
    }

    /// Counters by name.
    pub fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![("dropped_bytes", self.output.dropped_bytes()), ("typed_bytes", self.typed_bytes)]
    }

    fn print(&mut self) {
        let result = match &mut self.terminal {
            Some(terminal) => self.output.drain(terminal),
            None => self.output.drain(&mut io::sink()),
        };
        match result {
            Ok(Drained::All | Drained::Blocked) => {}
            Err(error) => self.nobody_looks(&error),
        }
    }

    fn read(&mut self) {
        loop {
            let taken = self.serial.enqueue(&self.typed);
            self.typed.drain(..taken);
            if !self.typed.is_empty() {
                // The serial port says when there is room.
                return;
            }
            let Some(terminal) = &mut self.terminal else { return };
            let mut buffer = [0; TYPED_MAX];
            match terminal.read(&mut buffer) {
                // Nothing more will be typed, but what is printed may still be looked at.
                Ok(0) => return,
                Ok(count) => {
                    self.typed.extend(buffer.iter().take(count));
                    self.typed_bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.nobody_looks(&error),
            }
        }
    }

    fn nobody_looks(&mut self, error: &io::Error) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            log::warn!("the console is gone: {error}");
        }
        if let Some(mut terminal) = self.terminal.take() {
            // Closing it is all that is left to do.
            let _ = terminal.flush();
        }
    }
}

const TYPED_MAX: usize = 256;
/// How long the last words of a machine wait for a slow reader.
const FINISH_MAX: Duration = Duration::from_millis(900);
