//! What a cloud does on a simulated host: real records, real timing, machines in memory.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect shall end, and say so"
)]

mod crashes;
mod describing;
mod every_step;
mod faults;
mod launching;
mod living;
mod metering;
mod scale;
mod world;
