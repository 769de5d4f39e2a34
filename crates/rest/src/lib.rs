//! The REST control socket: HTTP/1.1 and JSON on a Unix socket, as `ec2vmm-rest-api` promises it.
//!
//! It translates: rules are the cloud's, and nothing here knows how an instance is started or what a
//! filter means. What it owns is the wire: who may send how much for how long, how errors read, which
//! requests are under way.

mod backup;
mod bytes;
mod console;
mod cost;
mod ending;
mod events;
mod extract;
mod images;
mod instance_types;
mod instances;
mod key_pairs;
mod listing;
mod metrics;
mod openapi;
mod problem;
mod routes;
mod server;
mod stall;
mod status;
mod tags;
mod trace;
mod usage;
mod volumes;

pub use ending::{End, Ending};
pub use instances::domain;
pub use openapi::openapi;
pub use routes::{About, Rest};
pub use server::{Limits, Server};
