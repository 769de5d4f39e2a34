//! All that is particular to x86-64 machines.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod features;
pub mod layout;
pub mod registers;
pub mod reset_vector;
pub mod state;
