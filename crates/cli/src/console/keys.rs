//! Keys that are not for the guest: Ctrl-A and one more.
//!
//! ```text
//! Plain ─Ctrl-A→ Prefix ─any key→ Plain
//! ```

/// What is next.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Keys {
    /// A key for the guest.
    #[default]
    Plain,
    /// A key for us.
    Prefix,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Key {
    /// The guest reads it.
    Send(u8),
    /// End the machine.
    Leave,
    /// Press the power button.
    PowerButton,
    /// List the keys.
    Help,
    /// Nothing, or nothing yet.
    Nothing,
}

impl Keys {
    /// What a key asks for, and what is next.
    pub(crate) fn press(self, key: u8) -> (Key, Self) {
        match (self, key) {
            (Self::Plain, PREFIX) => (Key::Nothing, Self::Prefix),
            (Self::Plain, key) => (Key::Send(key), Self::Plain),
            (Self::Prefix, PREFIX | b'a') => (Key::Send(PREFIX), Self::Plain),
            (Self::Prefix, b'x' | b'X') => (Key::Leave, Self::Plain),
            (Self::Prefix, b'p' | b'P') => (Key::PowerButton, Self::Plain),
            (Self::Prefix, b'h' | b'H' | b'?') => (Key::Help, Self::Plain),
            (Self::Prefix, _) => (Key::Nothing, Self::Plain),
        }
    }
}

/// The keys, for people; lines end as a raw terminal wants them.
pub(crate) const HELP: &str = "\r\n\
    Ctrl-A x       leave: ends the machine at once\r\n\
    Ctrl-A p       press the power button: the guest shuts down by itself\r\n\
    Ctrl-A h       list these keys\r\n\
    Ctrl-A Ctrl-A  send one Ctrl-A to the guest (also Ctrl-A a)\r\n";

/// Ctrl-A.
const PREFIX: u8 = 0x01;

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::{Key, Keys};

    #[test]
    fn typed() {
        check(b"ls\r", &expect!["Send(108) Send(115) Send(13)"]);
        check(b"\x01x", &expect!["Nothing Leave"]);
        check(b"\x01h\x01p", &expect!["Nothing Help Nothing PowerButton"]);
        check(b"\x01\x01x", &expect!["Nothing Send(1) Send(120)"]);
        check(b"\x01ax", &expect!["Nothing Send(1) Send(120)"]);
        check(b"\x01zx", &expect!["Nothing Nothing Send(120)"]);
        check(b"\x03\x1a\xff", &expect!["Send(3) Send(26) Send(255)"]);
    }

    fn check(typed: &[u8], expect: &Expect) {
        let mut keys = Keys::default();
        let seen: Vec<String> = typed
            .iter()
            .map(|&key| {
                let (asks, next) = keys.press(key);
                keys = next;
                assert!(asks != Key::Leave || next == Keys::Plain);
                format!("{asks:?}")
            })
            .collect();
        expect.assert_eq(&seen.join(" "));
    }
}
