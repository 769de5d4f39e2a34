//! The REST socket with a whole cloud behind it, on the simulated host.

mod abuse;
mod client;
mod errors;
mod images;
mod instances;
mod key_pairs;
mod place;
mod routes;
mod streams;
