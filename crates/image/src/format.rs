//! How files hold disks. The format is always told, never probed: a guest that writes a qcow2 header
//! into its raw disk must not be believed.

use std::fmt;
use std::fs::File;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a file holds a disk.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Byte N of the file is byte N of the disk.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

/// One file of a disk: the one that is written, or one that lies beneath it.
#[derive(Debug)]
pub struct Layer {
    /// The open file.
    pub file: File,
    /// How to read it.
    pub format: Format,
}

impl Format {
    /// The format's name, as `qemu-img` spells it: `raw` or `qcow2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        match name {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(UnknownFormat(name.to_owned())),
        }
    }
}

/// A format that is neither `raw` nor `qcow2`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unknown disk format {0:?}: raw and qcow2 are known")]
pub struct UnknownFormat(pub String);
