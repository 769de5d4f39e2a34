//! The REST socket with a whole cloud behind it, on the simulated host.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect shall end, and say so"
)]

mod abuse;
mod client;
mod errors;
mod images;
mod instances;
mod key_pairs;
mod place;
mod routes;
mod streams;
