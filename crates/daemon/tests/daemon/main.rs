//! `ec2vmmd` as a process, on the simulated host: start, end, sudden end, upgrade, refusal.

mod life;
mod place;
mod refusals;
mod upgrade;
