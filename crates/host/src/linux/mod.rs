//! Real machines on this Linux host.

pub mod network;
