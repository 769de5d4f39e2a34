//! `ec2vmmd`, the control daemon: wiring and process life.

fn main() {}
