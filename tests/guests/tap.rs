//! A tap of a test's own, gone with it.

use std::process::Command;

use crate::hard_kills::run;

pub(crate) struct Tap(&'static str);

impl Tap {
    /// Makes a tap that is up, with this address of the host on it. `flags` are more of those of `ip tuntap`.
    pub(crate) fn make(name: &'static str, address: &str, flags: &[&str]) -> Self {
        run(Command::new("ip").args(["tuntap", "add", "dev", name, "mode", "tap"]).args(flags));
        let tap = Self(name);
        run(Command::new("ip").args(["addr", "add", &format!("{address}/24"), "dev", name]));
        run(Command::new("ip").args(["link", "set", name, "up"]));
        tap
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // It fails where the tap was lost, which the test has told already.
        let _ = Command::new("ip").args(["link", "del", self.0]).status();
    }
}
