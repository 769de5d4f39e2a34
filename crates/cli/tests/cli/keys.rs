//! Key pairs and images.

use std::os::unix::fs::PermissionsExt;

use expect_test::expect;
use serde_json::{Value, json};

use crate::{
    daemon::{Reply, problem},
    host::{Host, write_key},
};

#[test]
fn a_private_key_is_written_once() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("POST /v1/key-pairs", [Reply::Json(201, created("-----BEGIN RSA PRIVATE KEY-----\nAA==\n"))]);
    host.check(&mut host.command("key create my-key"), &expect![[r#"
        status 0
        -- stdout
        NAME    TYPE  ID                     CREATED                   FINGERPRINT
        my-key  rsa   key-0123456789abcdef0  2026-11-22T10:33:13.000Z  1f:51:ae:28:bf:89:e9:d8:1f:25:5d:37:2d:7d:b8:ca:9f:f5:f1:6f

        private key  my-key.pem
    "#]]);
    let path = host.path("my-key.pem");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "-----BEGIN RSA PRIVATE KEY-----\nAA==\n");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    host.check(
        &mut host.command("key create my-key"),
        &expect![[r#"
        status 26
        -- stderr
        ec2vmm: my-key.pem is there already
        hint: `--output FILE` names another file; a private key is never overwritten
    "#]],
    );
    host.check(&mut host.command("key create my-key --type ed25519 --format ppk --tag a=b"), &expect![[r#"
        status 0
        -- stdout
        NAME    TYPE  ID                     CREATED                   FINGERPRINT
        my-key  rsa   key-0123456789abcdef0  2026-11-22T10:33:13.000Z  1f:51:ae:28:bf:89:e9:d8:1f:25:5d:37:2d:7d:b8:ca:9f:f5:f1:6f

        private key  my-key.ppk
    "#]]);
    let output = host.command("key create my-key --bits 4096 --output other --json").output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), key());
    assert!(host.path("other").exists());
    expect![[r#"
        POST /v1/key-pairs {"name":"my-key","kind":"rsa","format":"pem","tags":{}}
        POST /v1/key-pairs {"name":"my-key","kind":"ed25519","format":"ppk","tags":{"a":"b"}}
        POST /v1/key-pairs {"name":"my-key","kind":"rsa","bits":4096,"format":"pem","tags":{}}"#]]
    .assert_eq(&daemon.asked().join("\n"));
}

#[test]
fn where_no_key_is_made_no_file_stays() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("POST /v1/key-pairs", [problem(409, "InvalidKeyPair.Duplicate", "The keypair already exists")]);
    for (words, status) in [
        ("key create my-key", 43),
        ("key create my-key --output nowhere/my-key.pem", 26),
        ("key create a/b", 2),
        ("key create .hidden", 2),
        ("key create my-key --type ed25519 --bits 2048", 2),
        ("key create my-key --bits 1024", 2),
        ("key create my-key --type dsa", 2),
    ] {
        let output = host.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{words}: {output:?}");
    }
    assert!(!host.path("my-key.pem").exists());
    assert_eq!(daemon.asked().len(), 1);
}

#[test]
fn a_private_key_that_cannot_be_written() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("POST /v1/key-pairs", [Reply::Json(201, created("secret"))]);
    daemon.on("DELETE /v1/key-pairs/key-0123456789abcdef0", [Reply::Text(204, "")]);
    // A file that may not grow: setrlimit(2).
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -f 0; trap '' XFSZ; exec \"$0\" key create my-key"]);
    command.arg(env!("CARGO_BIN_EXE_ec2vmm")).current_dir(host.path(""));
    command.env("EC2VMM_SOCKET", host.path("daemon.sock"));
    host.check(
        &mut command,
        &expect![[r#"
        status 26
        -- stderr
        ec2vmm: cannot write my-key.pem: File too large (os error 27)
        hint: the key pair was deleted again
    "#]],
    );
    assert!(!host.path("my-key.pem").exists());
    expect![[r#"
        POST /v1/key-pairs {"name":"my-key","kind":"rsa","format":"pem","tags":{}}
        DELETE /v1/key-pairs/key-0123456789abcdef0"#]]
    .assert_eq(&daemon.asked().join("\n"));
}

#[test]
fn importing() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on("POST /v1/key-pair-imports", [Reply::Json(201, key())]);
    write_key(&host.path("key.pub"));
    std::fs::write(host.path("key"), "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
    std::fs::write(host.path("noise"), [0xff]).unwrap();
    host.check(&mut host.command("key import my-key key.pub"), &expect![[r#"
        status 0
        -- stdout
        NAME    TYPE  ID                     CREATED                   FINGERPRINT
        my-key  rsa   key-0123456789abcdef0  2026-11-22T10:33:13.000Z  1f:51:ae:28:bf:89:e9:d8:1f:25:5d:37:2d:7d:b8:ca:9f:f5:f1:6f
    "#]]);
    host.check(
        &mut host.command("key import my-key key"),
        &expect![[r#"
        status 26
        -- stderr
        ec2vmm: key is a private key
        hint: its public half is wanted: `ssh-keygen -y -f key > key.pub`
    "#]],
    );
    for words in ["key import my-key noise", "key import my-key nowhere", "key import my-key ."] {
        assert_eq!(host.command(words).output().unwrap().status.code(), Some(26), "{words}");
    }
    expect![[r#"POST /v1/key-pair-imports {"name":"my-key","public_key":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGuQ2TjWzWpDE1Kf8ozkA7FZ5qXr4k9oDmJjKz0h0f3E me@here\n","tags":{}}"#]].assert_eq(&daemon.asked().join("\n"));
}

#[test]
fn listing_and_deleting() {
    let host = Host::new("");
    let daemon = host.daemon();
    daemon.on_json("GET /v1/key-pairs", json!({ "key_pairs": [key()] }));
    daemon.on("DELETE /v1/key-pairs/my%20key%2F1", [Reply::Text(204, "")]);
    daemon.on(
        "DELETE /v1/key-pairs/no",
        [problem(400, "InvalidKeyPair.NotFound", "The key pair 'no' does not exist")],
    );
    host.check(&mut host.command("key ls --filter key-type=rsa"), &expect![[r#"
        status 0
        -- stdout
        NAME    TYPE  ID                     CREATED                   FINGERPRINT
        my-key  rsa   key-0123456789abcdef0  2026-11-22T10:33:13.000Z  1f:51:ae:28:bf:89:e9:d8:1f:25:5d:37:2d:7d:b8:ca:9f:f5:f1:6f
    "#]]);
    host.check(
        &mut host.command("key ls -q"),
        &expect![[r#"
        status 0
        -- stdout
        my-key
    "#]],
    );
    let mut command = host.command("key rm no");
    host.check(
        command.arg("my key/1"),
        &expect![[r#"
            status 42
            -- stderr
            ec2vmm: The key pair 'no' does not exist (InvalidKeyPair.NotFound)
            hint: `ec2vmm key ls` lists the key pairs; `ec2vmm key create` makes one
        "#]],
    );
    expect![[r#"
        GET /v1/key-pairs?filter=key-type%3Drsa
        GET /v1/key-pairs
        DELETE /v1/key-pairs/no
        DELETE /v1/key-pairs/my%20key%2F1"#]]
    .assert_eq(&daemon.asked().join("\n"));
}

#[test]
fn images() {
    let host = Host::new("");
    let daemon = host.daemon();
    let image = json!({
        "image_id": "ami-0123456789abcdef0",
        "name": "debian-12",
        "description": "",
        "file": "/images/debian-12.qcow2",
        "format": "qcow2",
        "architecture": "x86_64",
        "size_bytes": 3_u64 << 30,
        "login_user": "debian",
        "creation_time": "2026-11-22T10:33:13.000Z",
        "tags": {},
    });
    daemon.on("POST /v1/images", [Reply::Json(201, image.clone())]);
    daemon.on_json("GET /v1/images", json!({ "images": [image] }));
    daemon.on("DELETE /v1/images/debian-12", [Reply::Text(204, "")]);
    host.check(
        &mut host.command("image register disk.raw --name debian-12 --login-user debian"),
        &expect![[r#"
            status 0
            -- stdout
            ID                     NAME       ARCH    SIZE   FORMAT  USER    FILE
            ami-0123456789abcdef0  debian-12  x86_64  3 GiB  qcow2   debian  /images/debian-12.qcow2
        "#]],
    );
    host.check(
        &mut host.command("image register debian-12.qcow2 --name debian-12 --id ami-1 --json --tag a=b"),
        &expect![[r#"
            status 0
            -- stdout
            {
              "image_id": "ami-0123456789abcdef0",
              "name": "debian-12",
              "description": "",
              "file": "/images/debian-12.qcow2",
              "format": "qcow2",
              "architecture": "x86_64",
              "size_bytes": 3221225472,
              "login_user": "debian",
              "creation_time": "2026-11-22T10:33:13.000Z",
              "tags": {}
            }
        "#]],
    );
    host.check(
        &mut host.command("image ls"),
        &expect![[r#"
        status 0
        -- stdout
        ID                     NAME       ARCH    SIZE   FORMAT  USER    FILE
        ami-0123456789abcdef0  debian-12  x86_64  3 GiB  qcow2   debian  /images/debian-12.qcow2
    "#]],
    );
    host.check(
        &mut host.command("image rm debian-12"),
        &expect![[r#"
        status 0
    "#]],
    );
    let asked = daemon.asked().join("\n").replace(host.path("").to_str().unwrap(), "DIR/");
    expect![[r#"
        POST /v1/images {"name":"debian-12","description":"","file":"DIR/disk.raw","format":"raw","login_user":"debian","tags":{}}
        POST /v1/images {"name":"debian-12","description":"","file":"debian-12.qcow2","format":"qcow2","login_user":"root","image_id":"ami-1","tags":{"a":"b"}}
        GET /v1/images
        DELETE /v1/images/debian-12"#]].assert_eq(&asked);
}

fn key() -> Value {
    json!({
        "key_pair_id": "key-0123456789abcdef0",
        "name": "my-key",
        "kind": "rsa",
        "fingerprint": "1f:51:ae:28:bf:89:e9:d8:1f:25:5d:37:2d:7d:b8:ca:9f:f5:f1:6f",
        "public_key": "ssh-rsa AAAA",
        "creation_time": "2026-11-22T10:33:13.000Z",
        "tags": {},
    })
}

fn created(private: &str) -> Value {
    json!({ "key_pair": key(), "private_key": private, "format": "pem" })
}
