//! `ec2vmmd` as a process, on the simulated host: start, end, sudden end, upgrade, refusal.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect shall end, and say so"
)]

mod life;
mod place;
mod refusals;
mod upgrade;
