//! What the fuzz targets share: disks made by real tools, changed here and there by the input.
//!
//! An input is a program: it chooses a base disk and says which bytes to change. So a few bytes of input
//! reach deep structures, which whole disks as inputs would hardly do.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc::{CRC_32_ISO_HDLC, Crc};

/// A disk that the inputs change.
pub struct Base {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// The base disks of a kind, by the ending of their names, that `scripts/fuzz` made.
pub fn bases(ending: &str) -> Vec<Base> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/bases");
    let mut bases = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("scripts/fuzz makes the base disks") {
        let path = entry.expect("the folder of base disks").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(ending) {
            bases.push(Base { name, bytes: std::fs::read(&path).expect("a base disk") });
        }
    }
    bases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!bases.is_empty(), "no base disks end with {ending}");
    bases
}

/// What an input still has to say.
pub struct Program<'a>(pub &'a [u8]);

impl Program<'_> {
    pub fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    pub fn number(&mut self, bytes: usize) -> Option<u64> {
        (0..bytes).try_fold(0, |number, _| Some(number << 8 | u64::from(self.byte()?)))
    }

    pub fn bytes(&mut self, len: usize) -> &[u8] {
        let (now, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        now
    }

    /// Changes `bytes` as told, up to the end of the input or a length of zero. Returns what was changed.
    pub fn patch(&mut self, bytes: &mut [u8]) -> Vec<std::ops::Range<usize>> {
        let mut changed = Vec::new();
        while let Some(len) = self.byte().filter(|&len| len > 0) {
            let Some(at) = self.number(3) else { break };
            let at = at as usize % bytes.len();
            let end = (at + usize::from(len)).min(bytes.len());
            let new = self.bytes(end - at);
            bytes[at..at + new.len()].copy_from_slice(new);
            changed.push(at..at + new.len());
        }
        changed
    }
}

/// Makes the checksums of the first GPT right again, so that what they cover is reached.
pub fn repair_gpt(bytes: &mut [u8]) {
    const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    if bytes.get(512..520) != Some(b"EFI PART") {
        return;
    }
    let long = |bytes: &[u8], at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let start = long(bytes, 512 + 72) as usize * 512;
    let len = long(bytes, 512 + 80) as usize * long(bytes, 512 + 84) as usize;
    if let Some(entries) = bytes.get(start..).and_then(|tail| tail.get(..len)) {
        let sum = CRC.checksum(entries);
        bytes[512 + 88..512 + 92].copy_from_slice(&sum.to_le_bytes());
    }
    bytes[512 + 16..512 + 20].fill(0);
    let sum = CRC.checksum(&bytes[512..512 + 92]);
    bytes[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
}

/// A file without a name that holds `bytes`.
pub fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().expect("a temporary file");
    file.write_all_at(bytes, 0).expect("room for a temporary file");
    file
}
