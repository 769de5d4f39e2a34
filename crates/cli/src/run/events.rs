//! Lines that the machine process writes: events, and its log. Both come in pieces.

use ec2vmm_vmm_api::{Event, Exit, Failure};

/// Collects bytes into lines. One that grows beyond [`LINE_BYTES_MAX`] is cut there.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// The lines that these bytes complete, without their ends.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.begun.push(byte);
            }
            if byte == b'\n' || self.begun.len() >= LINE_BYTES_MAX {
                lines.push(std::mem::take(&mut self.begun));
            }
        }
        lines
    }

    /// What was begun and not completed.
    pub(crate) fn rest(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.begun)).filter(|rest| !rest.is_empty())
    }
}

/// How the machine says that it ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) exit: Exit,
    pub(crate) failure: Option<Failure>,
}

/// What a line of events means here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    /// For whoever reads our events.
    Event,
    /// The last one; the command words its own.
    End(End),
    /// Not an event.
    Noise(String),
}

pub(crate) fn hear(line: &[u8]) -> Heard {
    match serde_json::from_slice(line) {
        Ok(Event::Ended { exit, failure, .. }) => Heard::End(End { exit, failure }),
        Ok(_) => Heard::Event,
        Err(error) => Heard::Noise(format!("the machine process reported something unknown: {error}")),
    }
}

const LINE_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use ec2vmm_vmm_api::{Event, Exit, FailureKind};
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{End, Heard, LINE_BYTES_MAX, Lines, hear};

    #[test]
    fn events() {
        assert_eq!(hear(br#"{"event":"running","us":5}"#), Heard::Event);
        let exit = Exit::Failed(FailureKind::TripleFault);
        let line = serde_json::to_vec(&Event::Ended { us: 1, exit, failure: None }).unwrap();
        assert_eq!(hear(&line), Heard::End(End { exit, failure: None }));
        assert!(matches!(hear(b"{}"), Heard::Noise(_)));
        assert!(matches!(hear(b"\xff"), Heard::Noise(_)));
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut lines = Lines::default();
        let cut = lines.take(&vec![b'x'; LINE_BYTES_MAX + 1]);
        assert_eq!(cut.len(), 1);
        assert_eq!(lines.rest().unwrap(), b"x");
        assert_eq!(lines.rest(), None);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..200) {
            let mut whole = Lines::default();
            let mut pieces = Lines::default();
            let (first, second) = bytes.split_at(at.min(bytes.len()));
            let lines = [pieces.take(first), pieces.take(second)].concat();
            prop_assert_eq!(whole.take(&bytes), lines);
            prop_assert_eq!(whole.rest(), pieces.rest());
        }
    }
}
