//! One snapshot of several.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
};

use ec2vmm_snapshot::{MemoryWriter, read_tail, write_document};
use expect_test::expect;
use uuid::Uuid;

use crate::host::Host;

const MIB: u64 = 32;
const RAM: u64 = MIB << 20;

/// A snapshot's folder, with these pages, each filled with a byte.
fn snapshot(host: &Host, folder: &str, number: u128, parent: Option<u128>, pages: &[(u64, u8)]) {
    let path = host.path(folder);
    fs::create_dir(&path).unwrap();
    let id = Uuid::from_u128(number);
    let document = format!(r#"{{"id":"{id}","shape":{{"memory_mib":{MIB}}}}}"#);
    write_document(document.as_bytes(), &mut File::create(path.join("state")).unwrap()).unwrap();
    let memory = File::options().read(true).write(true).create_new(true).open(path.join("memory")).unwrap();
    let mut writer = MemoryWriter::new(&memory, RAM, parent.map(Uuid::from_u128)).unwrap();
    for (page, byte) in pages {
        writer.put(page * 4096, &[*byte; 4096], |_| true).unwrap();
    }
    writer.finish(id).unwrap();
}

fn three(host: &Host) {
    snapshot(host, "full", 1, None, &[(0, 1), (5, 1), (9, 1)]);
    snapshot(host, "first", 2, Some(1), &[(5, 2), (6, 2)]);
    snapshot(host, "second", 3, Some(2), &[(6, 3), (9, 0)]);
}

/// What is there besides what was made here.
fn names(host: &Host) -> Vec<String> {
    let entries = fs::read_dir(host.path("")).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| !["full", "first", "second"].contains(&name.as_str()));
    names.sort();
    names
}

#[test]
fn differences_become_one_with_the_full_snapshot() {
    let host = Host::new("");
    three(&host);
    let before = names(&host);
    host.check(
        &mut host.command("machine merge full first second --into whole"),
        &expect![[r#"
            status 0
            -- stdout
            whole  12 KiB of memory
        "#]],
    );
    let whole = host.path("whole");
    let made: Vec<String> = names(&host).into_iter().filter(|name| !before.contains(name)).collect();
    assert_eq!(made, ["whole"], "nothing else is left");
    assert_eq!(whole.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let [state, memory] = ["state", "memory"].map(|name| whole.join(name));
    for file in [&state, &memory] {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(fs::read(&state).unwrap(), fs::read(host.path("second").join("state")).unwrap());
    let file = File::open(&memory).unwrap();
    let tail = read_tail(&file, 0, RAM).unwrap();
    assert_eq!((tail.id, tail.parent), (Uuid::from_u128(3), None));
    let byte = |page: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, page * 4096 + 7).unwrap();
        byte[0]
    };
    assert_eq!([0, 1, 5, 6, 9].map(byte), [1, 0, 2, 3, 0]);
    assert!(memory.metadata().unwrap().blocks() * 512 < 1 << 20, "holes are holes");
}

#[test]
fn what_cannot_be_merged_leaves_nothing_behind() {
    let host = Host::new("");
    three(&host);
    let before = names(&host);
    host.check(
        &mut host.command("machine merge full second --into whole"),
        &expect![[r#"
            status 27
            -- stderr
            ec2vmm: a memory file is a difference to another snapshot's
            hint: name the full snapshot, then each difference, in the order in which they were taken
        "#]],
    );
    host.check(
        &mut host.command("machine merge first second --into whole"),
        &expect![[r#"
            status 27
            -- stderr
            ec2vmm: the first memory file is a difference
            hint: name the full snapshot, then each difference, in the order in which they were taken
        "#]],
    );
    host.check(
        &mut host.command("machine merge full first --into full"),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot make full: entity already exists
            hint: name a folder that is not there yet
        "#]],
    );
    host.check(
        &mut host.command("machine merge full first --into no/where"),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot make no/where: No such file or directory (os error 2)
            hint: name a folder that is not there yet
        "#]],
    );
    host.check(
        &mut host.command("machine merge full none --into whole"),
        &expect![[r#"
            status 26
            -- stderr
            ec2vmm: cannot read none/state: No such file or directory (os error 2)
            hint: check the name and what the file holds; `ec2vmm run --help` says what is wanted
        "#]],
    );
    let first = File::options().write(true).open(host.path("first").join("memory")).unwrap();
    first.set_len(RAM).unwrap();
    host.check(
        &mut host.command("machine merge full first second --into whole"),
        &expect![[r#"
            status 27
            -- stderr
            ec2vmm: first: memory file 1 is cut short, or is none of a machine with this much memory
            hint: take the snapshot's files from where they were copied from
        "#]],
    );
    let state = File::options().write(true).open(host.path("second").join("state")).unwrap();
    state.write_all_at(&[2], 8).unwrap();
    host.check(
        &mut host.command("machine merge full first second --into whole"),
        &expect![[r#"
            status 28
            -- stderr
            ec2vmm: second: the state is in format 2, and this ec2vmm reads formats 1 to 1
            hint: restore with the ec2vmm that wrote it, or a later one
        "#]],
    );
    assert_eq!(names(&host), before);
}
