//! Networks on a real kernel, in network and mount namespaces that each test makes for itself: the host's
//! own network is never touched. They need root, and say so where they cannot run.

mod forgery;
mod lab;
mod names;
mod survival;
mod taps;
mod traffic;
