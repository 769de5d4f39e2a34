//! All that is particular to x86-64 machines.

pub mod acpi;
pub mod layout;
