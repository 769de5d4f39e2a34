//! Connects the guest's serial port with whoever looks at the console: the owner's terminal, a log file,
//! and those who come by the console's socket.
//!
//! What the guest prints is handed to each of them as far as they take it, what is typed waits in one
//! small buffer: neither side waits for the other, and neither can make the machine grow.

mod clients;
mod input;
mod log;

use std::{
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use ::log::warn;
use ec2vmm_devices::{
    console::{CAPACITY, ConsoleOutput},
    serial::Serial,
};

use self::{
    clients::Clients,
    input::{Input, Pulled},
    log::ConsoleLog,
};
use crate::{
    event_loop::{EventLoop, Source},
    outlet::Outlet,
};

/// The descriptors of a console. Each is optional, and independent of the others.
#[derive(Debug, Default)]
pub struct Ends {
    /// A stream socket, pipe, terminal or file.
    pub terminal: Option<OwnedFd>,
    /// The file that keeps the end of what is printed.
    pub log: Option<OwnedFd>,
    /// The listening socket.
    pub listener: Option<OwnedFd>,
}

/// The console of a machine, for its whole life.
pub struct Console {
    output: Arc<ConsoleOutput>,
    serial: Arc<Serial>,
    input: Input,
    viewers: Viewers,
}

/// Whoever is shown what the guest prints.
struct Viewers {
    /// None where nobody looks, or nobody looks any more.
    terminal: Option<Outlet>,
    log: Option<ConsoleLog>,
    clients: Option<Clients>,
    /// Dropped by terminals that are gone.
    dropped: u64,
}

impl Console {
    /// A console with these ends.
    ///
    /// # Errors
    /// Too many open files, or no room for the log.
    pub fn new(ends: Ends) -> io::Result<Self> {
        let output = Arc::new(ConsoleOutput::new(CAPACITY)?);
        let serial = Arc::new(Serial::new(Arc::clone(&output))?);
        let viewers = Viewers {
            terminal: ends.terminal.map(|terminal| Outlet::new(terminal, CAPACITY)).transpose()?,
            log: ends.log.map(ConsoleLog::new).transpose()?,
            clients: ends.listener.map(Clients::new).transpose()?,
            dropped: 0,
        };
        Ok(Self { output, input: Input::new(Arc::clone(&serial)), serial, viewers })
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
        if let Some(clients) = &self.viewers.clients {
            event_loop.watch(clients.as_raw_fd(), Source::ConsoleClients)?;
        }
        let Some(terminal) = &self.viewers.terminal else { return Ok(()) };
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
            Source::ConsoleClients => {
                // What was printed before they came is not for them.
                self.print();
                if let Some(clients) = &mut self.viewers.clients {
                    clients.ready();
                }
                self.read();
            }
            _ => {
                self.viewers.flush_terminal();
                self.read();
            }
        }
    }

    /// The guest's serial port is as born; what was typed before is not for the next system.
    pub fn reset(&mut self) {
        self.serial.reset();
        self.input.clear();
    }

    /// Prints what the guest has left behind, as far as somebody takes it.
    pub fn finish(&mut self) {
        while !self.output.is_empty() {
            self.print();
        }
        let deadline = Instant::now() + FINISH_MAX;
        if let Some(terminal) = &mut self.viewers.terminal
            && let Err(error) = terminal.finish(deadline)
            && !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::TimedOut)
        {
            warn!("waiting for the console: {error}");
        }
        if let Some(clients) = &mut self.viewers.clients {
            clients.finish(deadline);
        }
    }

    /// Counters by name.
    pub fn metrics(&self) -> Vec<(&'static str, u64)> {
        let Viewers { terminal, log, clients, dropped } = &self.viewers;
        let terminal = terminal.as_ref().map_or(0, Outlet::dropped_bytes);
        vec![
            ("dropped_bytes", self.output.dropped_bytes() + dropped + terminal),
            ("clients_dropped_bytes", clients.as_ref().map_or(0, Clients::dropped_bytes)),
            ("log_lost_bytes", log.as_ref().map_or(0, ConsoleLog::lost_bytes)),
            ("typed_bytes", self.input.bytes()),
        ]
    }

    fn print(&mut self) {
        if let Err(error) = self.output.drain(&mut self.viewers) {
            // They take all that they are given.
            warn!("showing the console: {error}");
        }
    }

    fn read(&mut self) {
        if let Some(terminal) = &mut self.viewers.terminal {
            match self.input.pull(terminal.reader()) {
                Pulled::Full => return,
                // What is printed may still be looked at.
                Pulled::Empty | Pulled::End => {}
                Pulled::Failed(error) => self.viewers.lose_terminal(&error),
            }
        }
        if let Some(clients) = &mut self.viewers.clients {
            clients.read(&mut self.input);
        }
    }
}

/// Takes everything, always: those who are slow lose the oldest of it.
impl Write for Viewers {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(log) = &mut self.log {
            log.append(bytes);
        }
        if let Some(clients) = &mut self.clients {
            clients.print(bytes);
        }
        if let Some(terminal) = &mut self.terminal
            && let Err(error) = terminal.put(bytes)
        {
            self.lose_terminal(&error);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Viewers {
    fn flush_terminal(&mut self) {
        if let Some(terminal) = &mut self.terminal
            && let Err(error) = terminal.flush()
        {
            self.lose_terminal(&error);
        }
    }

    fn lose_terminal(&mut self, error: &io::Error) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            warn!("the console is gone: {error}");
        }
        if let Some(terminal) = self.terminal.take() {
            self.dropped += terminal.dropped_bytes();
        }
    }
}

/// How long the last words of a machine wait for a slow reader.
const FINISH_MAX: Duration = Duration::from_millis(900);
