//! What the daemon is told from outside.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wish {
    /// The end.
    Stop,
    /// That the program in the file goes on in place of this one.
    Upgrade,
}

/// Signals, from the moment on when this was made: none before it is asked for gets lost.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    upgrade: Signal,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next one. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            // A terminal that is gone.
            _ = self.hang_up.recv() => Wish::Stop,
            _ = self.upgrade.recv() => Wish::Upgrade,
        }
    }
}
