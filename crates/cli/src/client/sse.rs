//! Server-sent events (WHATWG HTML, section 9.2), as much of them as the daemon sends: `id`, `event`, `data`.
//!
//! Invariant: what is kept never grows beyond [`EVENT_BYTES_MAX`], whatever comes.

/// One event.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Message {
    /// Its number, for `Last-Event-ID`.
    pub(crate) id: Option<String>,
    /// What kind of event.
    pub(crate) event: Option<String>,
    /// What happened.
    pub(crate) data: String,
}

/// Bytes in, events out.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    line: Vec<u8>,
    message: Message,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_return: bool,
}

/// An event that is longer than any that the daemon sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TooLong;

impl Decoder {
    /// The events that these bytes complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Message>, TooLong> {
        let mut complete = Vec::new();
        for &byte in bytes {
            let second_half = std::mem::replace(&mut self.after_return, byte == b'\r') && byte == b'\n';
            match byte {
                _ if second_half => {}
                b'\r' | b'\n' => complete.extend(self.end_line()),
                _ if self.line.len() + self.message.data.len() >= EVENT_BYTES_MAX => return Err(TooLong),
                byte => self.line.push(byte),
            }
        }
        Ok(complete)
    }

    fn end_line(&mut self) -> Option<Message> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        if line.is_empty() {
            // An event without data is none.
            let mut message = std::mem::take(&mut self.message);
            return message.data.pop().map(|_| message);
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                self.message.data += value;
                self.message.data.push('\n');
            }
            "id" => self.message.id = Some(value.to_owned()),
            "event" => self.message.event = Some(value.to_owned()),
            // A comment, which keeps the connection alive, or a field that we have no use for.
            _ => {}
        }
        None
    }
}

const EVENT_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{Decoder, EVENT_BYTES_MAX, TooLong};

    #[test]
    fn events() {
        check("", &expect![""]);
        check("data: one\n\n", &expect!["None None one"]);
        check(
            "id: 7\r\nevent: state\r\ndata: {\r\ndata: }\r\n\r\n: alive\n\ndata:two\n\n",
            &expect![[r#"
                Some("7") Some("state") {
                }
                None None two"#]],
        );
        check("event: nothing\n\nretry: 10\nunknown\ndata\n\ndata: unfinished\n", &expect!["None None "]);
        check("data: a\r\rdata: b\r\r", &expect!["None None a\nNone None b"]);
    }

    #[test]
    fn too_long() {
        let mut decoder = Decoder::default();
        decoder.feed(b"data: ").unwrap();
        assert_eq!(decoder.feed(&vec![b'x'; EVENT_BYTES_MAX]), Err(TooLong));
        let mut decoder = Decoder::default();
        let lines = "data: xxxxxxxx\n".repeat(EVENT_BYTES_MAX / 8);
        assert_eq!(decoder.feed(lines.as_bytes()), Err(TooLong));
    }

    fn check(text: &str, expect: &Expect) {
        let messages = Decoder::default().feed(text.as_bytes()).unwrap();
        let lines: Vec<String> = messages
            .iter()
            .map(|message| format!("{:?} {:?} {}", message.id, message.event, message.data))
            .collect();
        expect.assert_eq(&lines.join("\n"));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(bytes in any::<Vec<u8>>(), at in any::<proptest::sample::Index>()) {
            let whole = Decoder::default().feed(&bytes).unwrap();
            let (head, tail) = bytes.split_at(at.index(bytes.len() + 1));
            let mut decoder = Decoder::default();
            let mut pieces = decoder.feed(head).unwrap();
            pieces.extend(decoder.feed(tail).unwrap());
            prop_assert_eq!(pieces, whole);
        }
    }
}
