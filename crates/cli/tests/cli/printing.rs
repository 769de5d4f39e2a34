//! The commands that print and are done.

use std::{io::Read, process::Stdio};

use expect_test::expect;

use crate::host::Host;

#[test]
fn types() {
    let host = Host::new("");
    host.check(
        &mut host.command("types t2.m"),
        &expect![[r#"
        status 0
        -- stdout
        TYPE       VCPUS  MEMORY  ARCH    NETWORK          BURSTABLE  USD/HOUR
        t2.medium  2      4 GiB   x86_64  Low to Moderate  yes        0.0464
        t2.micro   1      1 GiB   x86_64  Low to Moderate  yes        0.0116
    "#]],
    );
    host.check(
        &mut host.command("types warp"),
        &expect![[r#"
        status 17
        -- stderr
        ec2vmm: no instance type has `warp` in its name
        hint: `ec2vmm types` lists them all
    "#]],
    );
    let output = host.command("types --json").output().unwrap();
    let types: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(types.as_array().unwrap().len(), 1373);
    assert_eq!(types[0]["name"], "a1.2xlarge");
}

#[test]
fn a_reader_that_has_seen_enough() {
    for words in ["types", "types --json", "completions bash", "man", "--help"] {
        let host = Host::new("");
        let mut command = host.command(words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "", "{words}");
        assert!(child.wait().unwrap().code().is_some_and(|code| code != 101), "{words}");
    }
}

#[test]
fn completions_and_manual_pages() {
    let host = Host::new("");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = host.command(&format!("completions {shell}")).output().unwrap();
        assert!(String::from_utf8(output.stdout).unwrap().contains("EC2VMM_COMPLETE"), "{shell}");
    }
    host.check(
        &mut host.command("man pages"),
        &expect![[r#"
        status 0
    "#]],
    );
    let mut pages: Vec<_> = std::fs::read_dir(host.path("pages"))
        .unwrap()
        .map(|page| page.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    expect![[r#"
        [
            "ec2vmm-backup.1",
            "ec2vmm-completions.1",
            "ec2vmm-console.1",
            "ec2vmm-cost.1",
            "ec2vmm-events.1",
            "ec2vmm-image-inspect.1",
            "ec2vmm-image-ls.1",
            "ec2vmm-image-register.1",
            "ec2vmm-image-rm.1",
            "ec2vmm-image.1",
            "ec2vmm-key-create.1",
            "ec2vmm-key-import.1",
            "ec2vmm-key-ls.1",
            "ec2vmm-key-rm.1",
            "ec2vmm-key.1",
            "ec2vmm-launch.1",
            "ec2vmm-ls.1",
            "ec2vmm-machine-merge.1",
            "ec2vmm-machine-snapshot.1",
            "ec2vmm-machine.1",
            "ec2vmm-man.1",
            "ec2vmm-modify.1",
            "ec2vmm-reboot.1",
            "ec2vmm-run.1",
            "ec2vmm-show.1",
            "ec2vmm-start.1",
            "ec2vmm-status.1",
            "ec2vmm-stop.1",
            "ec2vmm-tag.1",
            "ec2vmm-terminate.1",
            "ec2vmm-top.1",
            "ec2vmm-types.1",
            "ec2vmm-untag.1",
            "ec2vmm-wait.1",
            "ec2vmm.1",
        ]
    "#]]
    .assert_debug_eq(&pages);
    let page = std::fs::read_to_string(host.path("pages/ec2vmm-run.1")).unwrap();
    assert!(page.contains("Ctrl\\-A x") && !page.contains("emulated"), "{page}");
}
