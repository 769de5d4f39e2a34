//! What `docs/SECURITY.md` says of a machine process, proved on one. It is started as its owners start it, on
//! a guest of a few instructions. Needs root, a `/dev/kvm` of any kind, and a kernel that lets namespaces be
//! made and processes be traced; else a test says `SKIPPED`.
#![allow(unsafe_code, reason = "machine code, and system calls by number")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests"
)]

mod born;
mod coverage;
#[path = "../tiny_guests/elf.rs"]
mod elf;
mod forbidden;
#[allow(dead_code, reason = "shared with the tests of tiny guests")]
#[path = "../tiny_guests/guests.rs"]
mod guests;
mod live;
#[allow(dead_code, reason = "shared with the tests of tiny guests")]
#[path = "../tiny_guests/machine.rs"]
mod machine;
mod scenarios;
mod tracer;
