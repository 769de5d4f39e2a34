//! Instances: launched, listed, named, changed.

use expect_test::expect;
use serde_json::json;

use crate::{
    daemon::{Reply, id, instance, problem},
    host::Host,
};

#[test]
fn a_list() {
    let host = Host::new("");
    let daemon = host.daemon();
    let first = json!({ "instances": [instance(1, "web", "running")], "next_token": "more" });
    let second = json!({ "instances": [instance(2, "", "stopped")] });
    daemon.on("GET /v1/instances", [Reply::Json(200, first), Reply::Json(200, second)]);
    host.check(
        &mut host.command("ls --filter instance-type=t3.* -f tag:Name=a,b"),
        &expect![[r#"
            status 0
            -- stdout
            ID                   NAME  STATE    TYPE      ADDRESS      IMAGE                  KEY     LAUNCHED
            i-10000000000000000  web   running  t3.micro  172.31.0.11  ami-0123456789abcdef0  my-key  AGE
            i-20000000000000000  -     stopped  t3.micro  172.31.0.12  ami-0123456789abcdef0  my-key  AGE
        "#]],
    );
    expect![[r#"
        GET /v1/instances?filter=instance-state-name%3Dpending%2Crunning%2Cshutting-down%2Cstopping%2Cstopped&filter=instance-type%3Dt3.%2A&filter=tag%3AName%3Da%2Cb
        GET /v1/instances?filter=instance-state-name%3Dpending%2Crunning%2Cshutting-down%2Cstopping%2Cstopped&filter=instance-type%3Dt3.%2A&filter=tag%3AName%3Da%2Cb&next_token=more"#]].assert_eq(&daemon.asked().join("\n"));
    host.check(
        &mut host.command("ls --quiet"),
        &expect![[r#"
        status 0
        -- stdout
        i-20000000000000000
    "#]],
    );
    let output = host.command("ls --json").output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed, json!({ "instances": [instance(2, "", "stopped")] }));
}

#[test]
fn terminated_ones_are_listed_on_request() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on_json("GET /v1/instances", json!({ "instances": [] }));
    for words in ["ls --all", "ls --filter instance-state-name=terminated"] {
        assert!(host.command(words).output().unwrap().status.success());
    }
    expect![[r#"
        GET /v1/instances
        GET /v1/instances?filter=instance-state-name%3Dterminated"#]]
    .assert_eq(&daemon.asked().join("\n"));
}

#[test]
fn everything_about_one() {
    let host = Host::new("");
    let daemon = host.daemon();
    let mut shown = instance(1, "web\u{7}", "stopped");
    shown["state_reason"] = json!({
        "code": "Client.UserInitiatedShutdown",
        "message": "Client.UserInitiatedShutdown: User initiated shutdown",
    });
    shown["transition_reason"] = json!("User initiated (2026-11-22 10:33:13 GMT)");
    shown["disable_api_termination"] = json!(true);
    shown["credit_mode"] = json!("unlimited");
    daemon.on_json(&format!("GET /v1/instances/{}", id(1)), shown);
    let output = host.command(&format!("show {}", id(1))).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (head, rest) = text.split_once("stopped, for ").unwrap();
    let rest = rest.split_once('\n').unwrap().1;
    expect![[r#"
        id           i-10000000000000000
        state        stopped, for AGE
        reason       Client.UserInitiatedShutdown: User initiated shutdown
        transition   User initiated (2026-11-22 10:33:13 GMT)
        type         t3.micro: 2 vCPUs, 1 GiB, x86_64
        image        ami-0123456789abcdef0
        launched     2026-11-22T10:33:13.000Z
        key          my-key
        address      172.31.0.11
        host name    ip-172-31-0-11.ec2.internal
        interface    eni-0123456789abcdef0, 06:00:ac:1f:00:0a, subnet-0123456789abcdef0
        log in       ssh -i my-key.pem debian@172.31.0.11
        volume       vol-0123456789abcdef0 as /dev/sda1
        protected    from terminate
        power-off    from inside means stop
        credits      unlimited
        reservation  r-0123456789abcdef0, number 0
        region       us-east-1
        tag          Name=web\u{7}
    "#]]
    .assert_eq(&format!("{head}stopped, for AGE\n{rest}"));
}

#[test]
fn names() {
    let host = Host::new("");
    let daemon = host.daemon();
    let all = [
        instance(1, "web", "running"),
        instance(2, "db", "running"),
        instance(3, "db", "stopped"),
        instance(4, "web", "terminated"),
        instance(0x21, "old", "terminated"),
    ];
    daemon.on_json("GET /v1/instances", json!({ "instances": all }));
    let change =
        |nth| json!({ "instance_id": id(nth), "previous_state": "running", "current_state": "running" });
    for nth in [1, 2, 0x21] {
        daemon.on_json(&format!("POST /v1/instances/{}/reboot", id(nth)), change(nth));
    }
    // By name (and not the one that is gone), by the beginning of the id, each once.
    host.check(
        &mut host.command("reboot web i-2 i-10 web"),
        &expect![[r#"
        status 0
        -- stdout
        ID                   WAS      IS
        i-10000000000000000  running  running
        i-20000000000000000  running  running
    "#]],
    );
    host.check(
        &mut host.command("reboot old"),
        &expect![[r#"
        status 0
        -- stdout
        ID                    WAS      IS
        i-210000000000000000  running  running
    "#]],
    );
    host.check(
        &mut host.command("reboot web db"),
        &expect![[r#"
        status 42
        -- stderr
        ec2vmm: `db` could be i-20000000000000000 (db), i-30000000000000000 (db)
        hint: type more of the id
    "#]],
    );
    for words in ["reboot nobody", "show i-9", "show i-", "show ami-0123456789abcdef0"] {
        let output = host.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(42), "{words}");
    }
    host.check(
        &mut host.command("reboot nobody"),
        &expect![[r#"
        status 42
        -- stderr
        ec2vmm: no instance has the id, the beginning of an id, or the Name tag `nobody`
        hint: `ec2vmm ls` lists them
    "#]],
    );
    let reboots = daemon.asked().iter().filter(|asked| asked.starts_with("POST")).count();
    assert_eq!(reboots, 3, "nothing is done where one of several names is wrong");
}

#[test]
fn launching() {
    let host = Host::new("");
    let daemon = host.daemon();
    std::fs::write(host.path("data"), "#!/bin/sh\n").unwrap();
    let launched = json!({ "reservation_id": "r-1", "instances": [instance(1, "web", "pending")] });
    daemon.on("POST /v1/instances", [Reply::Json(201, launched)]);
    host.check(
        &mut host.command("launch debian-12"),
        &expect![[r#"
        status 0
        -- stdout
        ID                   NAME  STATE    TYPE      ADDRESS      IMAGE                  KEY     LAUNCHED
        i-10000000000000000  web   pending  t3.micro  172.31.0.11  ami-0123456789abcdef0  my-key  AGE
    "#]],
    );
    host.check(
        &mut host.command(
            "launch debian-12 --type t3.nano --count 1:3 --key my-key --user-data data --name web --tag a=b=c \
             --tag d= --volume-size 20G --volume-type gp2 --keep-volume --protect --protect-stop \
             --shutdown-behavior terminate --credits standard --private-ip 172.31.0.9 --token once --quiet",
        ),
        &expect![[r#"
            status 0
            -- stdout
            i-10000000000000000
        "#]],
    );
    expect![[r#"
        POST /v1/instances {"image":"debian-12","instance_type":"t3.micro","min_count":1,"max_count":1,"disable_api_termination":false,"disable_api_stop":false,"instance_initiated_shutdown_behavior":"stop","tags":{},"volume_tags":{}}
        POST /v1/instances {"image":"debian-12","instance_type":"t3.nano","min_count":1,"max_count":3,"key_name":"my-key","user_data":"IyEvYmluL3NoCg==","root_volume":{"size_gib":20,"kind":"gp2","delete_on_termination":false},"disable_api_termination":true,"disable_api_stop":true,"instance_initiated_shutdown_behavior":"terminate","credit_mode":"standard","private_ip_address":"172.31.0.9","tags":{"Name":"web","a":"b=c","d":""},"volume_tags":{}}"#]].assert_eq(&daemon.asked().join("\n"));
    let tokens = daemon.tokens();
    assert!(tokens[0].len() == 36 && tokens[1] == "once", "{tokens:?}");
}

#[test]
fn a_launch_whose_answer_is_lost_is_asked_for_again() {
    let host = Host::new("");
    let daemon = host.daemon();
    let launched = json!({ "reservation_id": "r-1", "instances": [instance(1, "web", "pending")] });
    daemon.on("POST /v1/instances", [Reply::Gone, Reply::Gone, Reply::Json(201, launched)]);
    let output = host.command("launch debian-12 -q").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\n", id(1)));
    let tokens = daemon.tokens();
    assert!(tokens.len() == 3 && tokens.iter().all(|token| *token == tokens[0]), "{tokens:?}");
}

#[test]
fn launches_that_make_no_sense() {
    let host = Host::new("");
    let daemon = host.daemon();
    std::fs::write(host.path("large"), vec![b'x'; 16 * 1024 + 1]).unwrap();
    for (words, status) in [
        ("launch", 2),
        ("launch debian-12 --count 0", 2),
        ("launch debian-12 --count 3:1", 2),
        ("launch debian-12 --tag x", 2),
        ("launch debian-12 --name a --tag Name=b", 2),
        ("launch debian-12 --volume-size 1.5G", 2),
        ("launch debian-12 --credits some", 2),
        ("launch debian-12 --timeout 3s", 2),
        ("launch debian-12 --private-ip 1.2.3", 2),
        ("launch debian-12 --user-data nowhere", 26),
        ("launch debian-12 --user-data large", 26),
    ] {
        let output = host.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{words}");
    }
    assert!(daemon.asked().is_empty());
}

#[test]
fn the_others_have_their_turn() {
    let host = Host::new("");
    let daemon = host.daemon();
    let change = json!({ "instance_id": id(2), "previous_state": "running", "current_state": "stopping" });
    let refusal = problem(
        409,
        "IncorrectInstanceState",
        "The instance 'i-10000000000000000' is not in a state from which it can be stopped.",
    );
    daemon.on(&format!("POST /v1/instances/{}/stop", id(1)), [refusal]);
    daemon.on_json(&format!("POST /v1/instances/{}/stop", id(2)), change);
    let words = format!("stop --force {} {}", id(1), id(2));
    host.check(&mut host.command(&words), &expect![[r#"
        status 43
        -- stdout
        ID                   WAS      IS
        i-20000000000000000  running  stopping
        -- stderr
        ec2vmm: The instance 'i-10000000000000000' is not in a state from which it can be stopped. (IncorrectInstanceState)
        hint: `ec2vmm show ID` tells its state; `--wait` and `ec2vmm wait` wait for one
    "#]]);
    host.check(&mut host.command(&(words + " --json")), &expect![[r#"
        status 43
        -- stdout
        [
          {
            "instance_id": "i-20000000000000000",
            "previous_state": "running",
            "current_state": "stopping"
          }
        ]
        -- stderr
        ec2vmm: The instance 'i-10000000000000000' is not in a state from which it can be stopped. (IncorrectInstanceState)
        hint: `ec2vmm show ID` tells its state; `--wait` and `ec2vmm wait` wait for one
    "#]]);
    expect![[r#"
        POST /v1/instances/i-10000000000000000/stop?force=true
        POST /v1/instances/i-20000000000000000/stop?force=true
        POST /v1/instances/i-10000000000000000/stop?force=true
        POST /v1/instances/i-20000000000000000/stop?force=true"#]]
    .assert_eq(&daemon.asked().join("\n"));
}

#[test]
fn attributes() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on_json(&format!("PATCH /v1/instances/{}", id(1)), instance(1, "web", "stopped"));
    let modify = format!("modify {}", id(1));
    host.check(
        &mut host.command(&format!(
            "{modify} --type t3.small --protect off --protect-stop on --credits unlimited"
        )),
        &expect![[r#"
            status 0
            -- stdout
            ID                   NAME  STATE    TYPE      ADDRESS      IMAGE                  KEY     LAUNCHED
            i-10000000000000000  web   stopped  t3.micro  172.31.0.11  ami-0123456789abcdef0  my-key  AGE
        "#]],
    );
    expect![[r#"PATCH /v1/instances/i-10000000000000000 {"instance_type":"t3.small","disable_api_termination":false,"disable_api_stop":true,"credit_mode":"unlimited"}"#]].assert_eq(&daemon.asked().join("\n"));
    host.check(
        &mut host.command(&modify),
        &expect![[r#"
        status 2
        -- stderr
        ec2vmm: nothing to change
        hint: `ec2vmm modify --help` lists what can be changed
    "#]],
    );
}

#[test]
fn tags() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on(&format!("POST /v1/tags/{}", id(1)), [Reply::Text(204, "")]);
    daemon.on(&format!("DELETE /v1/tags/{}", id(1)), [Reply::Text(204, "")]);
    daemon.on("POST /v1/tags/vol-0123456789abcdef0", [Reply::Text(204, "")]);
    for words in [
        format!("tag {} a=b c=", id(1)),
        format!("untag {} a&b ä", id(1)),
        "tag vol-0123456789abcdef0 a=b".to_owned(),
    ] {
        let output = host.command(&words).output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty(), "{words}: {output:?}");
    }
    expect![[r#"
        POST /v1/tags/i-10000000000000000 {"tags":{"a":"b","c":""}}
        DELETE /v1/tags/i-10000000000000000?key=a%26b&key=%C3%A4
        POST /v1/tags/vol-0123456789abcdef0 {"tags":{"a":"b"}}"#]]
    .assert_eq(&daemon.asked().join("\n"));
}
