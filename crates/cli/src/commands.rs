//! The commands that print something and are done, one a file.

pub(crate) mod completions;
pub(crate) mod image_inspect;
pub(crate) mod man;
pub(crate) mod types;
