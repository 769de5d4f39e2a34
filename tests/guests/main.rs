//! Real guests, driven as people drive them: by the `ec2vmm` command. See docs/TESTING.md.
//!
//! Every test here but those of `bad_images` boots Linux. They are ignored by a plain `cargo test`; `scripts/test` runs them,
//! in the lab where the host has no KVM for Linux guests.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "what does not hold fails the test"
)]

mod bad_images;
mod daemon;
mod debian;
mod devices;
#[path = "../../crates/vmm/tests/tiny_guests/elf.rs"]
mod elf;
mod hard_kills;
mod hot_plug;
mod instances;
mod machine;
mod minimal;
mod network;
mod place;
mod progress;
mod reboots;
mod snapshot;
mod ssh;
mod tap;
mod terminal;
mod transcript;
