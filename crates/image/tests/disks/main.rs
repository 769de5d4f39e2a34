//! Whole disks, made with the tools that make real ones.

mod boot;
mod tools;
