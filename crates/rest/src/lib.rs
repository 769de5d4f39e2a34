//! The REST control socket. It translates; rules are the cloud's.
