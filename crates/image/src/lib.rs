//! What is on a disk: formats, partition table, file systems, boot entries.
//!
//! [`Disk`] reads and writes raw and qcow2 files and chains of them; [`boot::find_boot`] finds the
//! kernel, initrd and command line that the disk's own boot loader would start; [`inspect::inspect`]
//! says all that was found. Every byte read comes from a stranger: whatever a file holds, the answer is
//! a value in bounded time and memory, never a panic.
//!
//! This crate never mounts, never prints, holds no unsafe code, and opens a path nowhere but in
//! [`open`], which serves the command line: a machine process uses only files that it was handed.

pub mod boot;
pub mod disk;
pub mod error;
pub mod filesystem;
pub mod inspect;
pub mod open;
pub mod partition;

mod bytes;
mod ext4;
mod format;
mod qcow2;
mod window;

pub use boot::{Boot, BootError, find_boot};
pub use disk::{Disk, DiskError, create_overlay, create_overlay_over};
pub use error::{Error, ErrorKind};
pub use ext4::{FileReader, FilesError};
pub use format::{Format, Layer, UnknownFormat};
pub use inspect::{Inspection, inspect};
pub use open::{OpenError, open_chain};
pub use qcow2::Qcow2Error;
