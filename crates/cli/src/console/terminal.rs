//! The terminal as the machine's console.
//!
//! Invariant: the mode in which the terminal was found is the mode in which it is left: when the [`Raw`] is
//! dropped, and when the command panics.

use std::{
    io::{self, IsTerminal},
    panic,
    sync::{Mutex, PoisonError},
};

use rustix::{
    process::getpgrp,
    stdio::stdin,
    termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr},
};

/// Raw mode: every key goes to the guest, and what the guest prints is not changed.
#[derive(Debug)]
pub(crate) struct Raw(());

impl Raw {
    /// Switches standard input to raw mode, if it is a terminal and this is its foreground job.
    pub(crate) fn enter() -> Option<Self> {
        if !io::stdin().is_terminal() || !in_foreground() {
            return None;
        }
        let found = tcgetattr(stdin()).ok()?;
        let previous = found_mode().replace(found);
        if previous.is_none() {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                before(info);
            }));
        }
        let raw = Self(());
        raw.resume();
        Some(raw)
    }

    /// Enters raw mode again after a stop, in which the shell took the terminal back.
    pub(crate) fn resume(&self) {
        let mode = found_mode().clone();
        if let Some(mut mode) = mode
            && in_foreground()
        {
            mode.make_raw();
            // A terminal that is gone has no mode; reading from it will say so.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &mode);
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// A background job that touches the terminal would be stopped.
pub(crate) fn in_foreground() -> bool {
    tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
}

fn restore() {
    if let Some(mode) = found_mode().take()
        && in_foreground()
    {
        // A terminal that is gone has no mode.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &mode);
    }
}

/// The mode in which the terminal was found, while it is another one.
fn found_mode() -> std::sync::MutexGuard<'static, Option<Termios>> {
    static FOUND: Mutex<Option<Termios>> = Mutex::new(None);
    FOUND.lock().unwrap_or_else(PoisonError::into_inner)
}
