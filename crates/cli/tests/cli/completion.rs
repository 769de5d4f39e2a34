//! Completion of what the daemon knows, as the scripts of shells ask for it.

use expect_test::{Expect, expect};
use serde_json::json;

use crate::{
    daemon::{Reply, instance},
    host::Host,
};

#[test]
fn what_the_daemon_knows() {
    let host = Host::new("");
    let daemon = host.daemon();
    let instances =
        [instance(1, "web", "running"), instance(2, "", "stopped"), instance(3, "old", "terminated")];
    daemon.on_json("GET /v1/instances", json!({ "instances": instances }));
    daemon.on_json("GET /v1/key-pairs", json!({ "key_pairs": [] }));
    daemon.on("GET /v1/images", [Reply::Text(500, "oops")]);
    check(
        &host,
        "stop i-",
        &expect![[r#"
        i-10000000000000000
        i-20000000000000000"#]],
    );
    check(&host, "stop web i-2", &expect!["i-20000000000000000"]);
    check(&host, "show we", &expect!["web"]);
    check(&host, "launch deb", &expect![[""]]);
    check(&host, "launch --type t3.n", &expect!["t3.nano"]);
    check(&host, "wait --for st", &expect!["stopped"]);
    check(&host, "key r", &expect!["rm"]);
}

#[test]
fn without_a_daemon() {
    let host = Host::new("");
    check(&host, "stop i-", &expect![[""]]);
    check(&host, "backu", &expect!["backup"]);
}

/// As bash asks.
fn check(host: &Host, typed: &str, expect: &Expect) {
    let words: Vec<&str> = std::iter::once("ec2vmm").chain(typed.split(' ')).collect();
    let mut command = host.command("--");
    command.args(&words).env("EC2VMM_COMPLETE", "bash").env("_CLAP_IFS", "\n");
    command.env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
    command.env("_CLAP_COMPLETE_COMP_TYPE", "9").env("_CLAP_COMPLETE_SPACE", "false");
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    expect.assert_eq(&String::from_utf8(output.stdout).unwrap());
}
