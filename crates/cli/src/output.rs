//! Standard output of the commands that print and are done. A reader that has seen enough (`| head`) is
//! no error that anybody wants to read about.

use std::{
    io::{self, Write},
    process::ExitCode,
};

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

/// Columns padded to their widest cell; the last one is left as it is.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let widths: Vec<usize> = (0..N)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column).map(|cell| cell.chars().count()));
            cells.chain(head.get(column).map(|cell| cell.len())).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &[String; N]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    std::iter::once(line(&head.map(str::to_owned))).chain(rows.iter().map(line)).collect()
}

/// The status of a program that SIGPIPE ended: 128 + 13.
pub(crate) const CLOSED: u8 = 141;

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let rows = [["t3.micro".to_owned(), "2".to_owned()], ["x".to_owned(), String::new()]];
        expect_test::expect![[r#"
            TYPE      VCPUS
            t3.micro  2
            x
        "#]]
        .assert_eq(&super::table(["TYPE", "VCPUS"], &rows));
    }
}
