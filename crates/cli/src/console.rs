//! A serial console on this terminal: raw mode, the keys that are not for the guest, outputs that never
//! wait, signals as something to poll. `run` is one with its own machine, `console --attach` one with an
//! instance of the daemon's.

pub(crate) mod attach;
pub(crate) mod input;
pub(crate) mod keys;
pub(crate) mod signals;
pub(crate) mod stream;
pub(crate) mod terminal;
