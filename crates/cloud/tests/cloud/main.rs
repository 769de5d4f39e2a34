//! What a cloud does on a simulated host: real records, real timing, machines in memory.

mod crashes;
mod describing;
mod faults;
mod launching;
mod living;
mod metering;
mod world;
