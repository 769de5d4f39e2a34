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

#[test]
fn the_help_of_every_verb_of_the_daemon() {
    let host = Host::new("");
    let mut text = String::new();
    for words in [
        "launch",
        "ls",
        "show",
        "start",
        "stop",
        "reboot",
        "terminate",
        "modify",
        "wait",
        "console",
        "events",
        "tag",
        "untag",
        "cost",
        "top",
        "key",
        "key create",
        "key import",
        "key ls",
        "key rm",
        "image",
        "image register",
        "image ls",
        "image rm",
        "status",
        "backup",
        "completions",
    ] {
        let output = host.command(&format!("{words} --help")).env("COLUMNS", "100").output().unwrap();
        assert!(output.status.success(), "{words}");
        text += &format!("$ ec2vmm {words} --help\n{}\n", String::from_utf8(output.stdout).unwrap());
    }
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/help-daemon.txt")].assert_eq(&text);
}
