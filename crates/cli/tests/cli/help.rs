//! The help, which is the reference of the command line.

use expect_test::expect_file;

use crate::host::Host;

#[test]
fn help_is_what_it_was() {
    let host = Host::new("");
    for (words, name) in [
        ("--help", "help.txt"),
        ("run --help", "help-run.txt"),
        ("image inspect --help", "help-image-inspect.txt"),
        ("types --help", "help-types.txt"),
    ] {
        let output = host.command(words).env("COLUMNS", "100").output().unwrap();
        assert!(output.status.success());
        expect_file![format!("{}/tests/cli/{name}", env!("CARGO_MANIFEST_DIR"))]
            .assert_eq(&String::from_utf8(output.stdout).unwrap());
    }
}
