//! Standard output of the commands that print and are done. A reader that has seen enough (`| head`) is
//! no error that anybody wants to read about.

pub(crate) mod progress;
pub(crate) mod screen;
pub(crate) mod span;
pub(crate) mod table;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use ec2vmm_rest_api::InstanceState;
use ec2vmm_vmm_api::FailureKind;
use serde::Serialize;

use crate::{Done, error::Error};

/// Prints a text.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Done {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Error::OutputClosed),
        Err(error) => {
            Err(Error::new(FailureKind::Other, format!("cannot write to standard output: {error}")))
        }
    }
}

/// Prints a JSON document.
pub(crate) fn print_json(value: &impl Serialize) -> Done {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::new(FailureKind::Other, format!("cannot write JSON: {error}")))?;
    print(text + "\n")
}

/// Names and what is known, which a stranger may have written.
pub(crate) fn facts(found: &[(&str, String)]) -> String {
    let width = found.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(FACT_WIDTH_MIN);
    found.iter().map(|(name, fact)| format!("{name:width$}  {}\n", printable(fact))).collect()
}

/// EC2's name of a state.
pub(crate) fn state_name(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Pending => "pending",
        InstanceState::Running => "running",
        InstanceState::ShuttingDown => "shutting-down",
        InstanceState::Terminated => "terminated",
        InstanceState::Stopping => "stopping",
        InstanceState::Stopped => "stopped",
    }
}

/// Text from a stranger, made safe for a terminal: control characters are spelled out.
pub(crate) fn printable(text: &str) -> String {
    let spell = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(spell).collect()
}

/// A number of bytes in its largest binary unit, with one decimal, rounded down, where it is not whole.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"].into_iter().zip([10, 20, 30, 40]);
    match units.rev().find(|(_, shift)| count >> shift > 0) {
        None => format!("{count} B"),
        Some((unit, shift)) if count.is_multiple_of(1 << shift) => format!("{} {unit}", count >> shift),
        // Tenths, in 128 bits because ten times the count may not fit.
        Some((unit, shift)) => {
            let tenths = (u128::from(count) * 10) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
    }
}

/// The status of a program that SIGPIPE ended: 128 + 13.
pub(crate) const CLOSED: u8 = 141;
const FACT_WIDTH_MIN: usize = 11;

#[cfg(test)]
mod tests {
    #[test]
    fn strangers_do_not_drive_the_terminal() {
        assert_eq!(super::printable("a\u{1b}[2J\nb\u{9b}ä"), "a\\u{1b}[2J\\nb\\u{9b}ä");
    }

    #[test]
    fn sizes_for_people() {
        let sizes = [0, 1023, 1024, 1536, 1 << 20, 3 << 30, u64::MAX].map(super::bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "1 MiB", "3 GiB", "16777215.9 TiB"]);
    }
}
