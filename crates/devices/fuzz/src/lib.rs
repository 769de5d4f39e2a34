//! What the fuzz targets share: a driver that mostly keeps to the rules of virtio, memory that nobody
//! can leave unnoticed, and a count of the heap.
//!
//! An input is a script: chains of buffers with now and then something wrong in them, kicks, resets, and
//! what happens behind the device. What must hold after each step is in [`driver::play`].

pub mod driver;
pub mod heap;
pub mod log_lines;
pub mod memory;
pub mod script;
