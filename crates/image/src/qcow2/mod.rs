//! The qcow2 header and tables, checked before imago is trusted with them.
//!
//! imago reads past the end of a file as zeros and sizes its tables by what the header says. So a file
//! is refused here that is shorter than its tables say, that wants more memory than a disk of 64 TiB
//! can need, or that uses what we do not support.
//! Source: `docs/interop/qcow2.rst` of QEMU.

mod tables;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::bytes::{be32, be64};

/// A header that passed all checks.
#[derive(Debug)]
pub(crate) struct Header {
    /// Size of the disk, bytes.
    pub(crate) size: u64,
    /// What the file says lies beneath it.
    pub(crate) backing: Option<Backing>,
    version: u32,
    cluster_bits: u32,
    /// Each reference count has two to the power of so many bits.
    refcount_order: u32,
    l1_offset: u64,
    l1_entries: u64,
    refcount_offset: u64,
    refcount_clusters: u64,
}

/// A backing file as the header names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Backing {
    /// A path, relative to the folder of the file that names it, or worse.
    pub(crate) name: String,
    /// The recorded format.
    pub(crate) format: Option<String>,
}

/// Why a file is no usable qcow2 file.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// The file cannot be read.
    #[error("cannot read the file")]
    Io(#[source] io::Error),
    /// The magic number is missing.
    #[error("not a qcow2 file: it does not start with the qcow2 magic number")]
    Magic,
    /// A version that is neither 2 nor 3.
    #[error("qcow2 version {0} is not supported: 2 and 3 are")]
    Version(u32),
    /// The file ends before something that its tables point to.
    #[error("truncated: {what} at byte {offset} reaches beyond the end of the file at byte {len}")]
    Truncated {
        /// What is missing.
        what: &'static str,
        /// Where it should be.
        offset: u64,
        /// The length of the file.
        len: u64,
    },
    /// A field of the header makes no sense.
    #[error("broken header: {what} is {value}")]
    Field {
        /// Which field.
        what: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A table entry points to where no cluster starts.
    #[error("broken table: {what} points to byte {offset}, where no cluster starts")]
    Misaligned {
        /// Which table.
        what: &'static str,
        /// Where it points.
        offset: u64,
    },
    /// Something in use counts as free, and would be written over.
    #[error("wrong reference counts: {what} at byte {offset} counts as free")]
    Free {
        /// What counts as free.
        what: &'static str,
        /// Where it is.
        offset: u64,
    },
    /// Something that the format allows and we do not support.
    #[error("{0} not supported")]
    Unsupported(&'static str),
    /// The file was not closed properly and its reference counts are stale.
    #[error("marked dirty: it was not closed properly")]
    Dirty,
    /// The file is marked as corrupt by whoever wrote it last.
    #[error("marked corrupt by the program that last wrote it")]
    Corrupt,
    /// The name of the backing file is not UTF-8.
    #[error("the name of the backing file is not text")]
    BackingName,
}

impl Qcow2Error {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Dirty | Self::Corrupt | Self::Free { .. } => "repair it with `qemu-img check -r all FILE`",
            Self::Truncated { .. } => "the copy or download is incomplete: fetch the file again",
            Self::Unsupported(_) => "convert it with `qemu-img convert -O qcow2 OLD NEW`",
            Self::Magic => "say `--format raw` if it is a raw disk",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

impl Header {
    /// Reads and checks the header of a file that is `len` bytes long.
    pub(crate) fn read(file: &File, len: u64) -> Result<Self, Qcow2Error> {
        let mut bytes = vec![0; usize::try_from(len.min(HEADER_BYTES)).unwrap_or_default()];
        file.read_exact_at(&mut bytes, 0).map_err(Qcow2Error::Io)?;
        if !bytes.starts_with(&MAGIC) {
            return Err(Qcow2Error::Magic);
        }
        Fields(&bytes, len).header()
    }

    /// Whether clusters can be given back: version 2 cannot say that one reads as zeros.
    pub(crate) fn can_discard(&self) -> bool {
        self.version >= 3
    }
}

/// The header's bytes and the file's length.
struct Fields<'a>(&'a [u8], u64);

impl Fields<'_> {
    fn header(&self) -> Result<Header, Qcow2Error> {
        let version = self.be32(4, "version")?;
        if !matches!(version, 2 | 3) {
            return Err(Qcow2Error::Version(version));
        }
        let cluster_bits = self.be32(20, "cluster bits")?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Qcow2Error::Field { what: "cluster bits", value: cluster_bits.into() });
        }
        let cluster = 1u64 << cluster_bits;
        let header_length = if version == 2 { 72 } else { self.features()? };
        if header_length > cluster || header_length % 8 != 0 {
            return Err(Qcow2Error::Field { what: "header length", value: header_length });
        }
        if self.be32(32, "encryption method")? != 0 {
            return Err(Qcow2Error::Unsupported("encryption is"));
        }
        if self.be32(60, "number of snapshots")? != 0 {
            return Err(Qcow2Error::Unsupported("internal snapshots are"));
        }
        let size = self.be64(24, "size")?;
        if size == 0 || size > SIZE_MAX {
            return Err(Qcow2Error::Field { what: "size of the disk", value: size });
        }
        let header = Header {
            size,
            backing: self.backing(version, cluster, header_length)?,
            version,
            refcount_order: if version == 2 { 4 } else { self.be32(96, "reference count order")? },
            cluster_bits,
            l1_offset: self.table(40, cluster, "L1 table offset")?,
            l1_entries: self.be32(36, "L1 size")?.into(),
            refcount_offset: self.table(48, cluster, "reference count table offset")?,
            refcount_clusters: self.be32(56, "reference count table clusters")?.into(),
        };
        self.check_sizes(&header)?;
        Ok(header)
    }

    /// Version 3's feature bits, and the header's length.
    fn features(&self) -> Result<u64, Qcow2Error> {
        let incompatible = self.be64(72, "incompatible features")?;
        for (bit, error) in [
            (0, Qcow2Error::Dirty),
            (1, Qcow2Error::Corrupt),
            (2, Qcow2Error::Unsupported("an external data file is")),
            (3, Qcow2Error::Unsupported("compression other than zlib is")),
            (4, Qcow2Error::Unsupported("extended L2 entries are")),
        ] {
            if incompatible & 1 << bit != 0 {
                return Err(error);
            }
        }
        if incompatible != 0 {
            return Err(Qcow2Error::Unsupported("an unknown incompatible feature is"));
        }
        let order = self.be32(96, "reference count order")?;
        if order > 6 {
            return Err(Qcow2Error::Field { what: "reference count order", value: order.into() });
        }
        let length = self.be32(100, "header length")?;
        if length < 104 {
            return Err(Qcow2Error::Field { what: "header length", value: length.into() });
        }
        Ok(length.into())
    }

    fn check_sizes(&self, header: &Header) -> Result<(), Qcow2Error> {
        let cluster = 1u64 << header.cluster_bits;
        let covered = header.l1_entries.saturating_mul(cluster).saturating_mul(cluster / 8);
        if header.l1_entries > TABLE_BYTES_MAX / 8 || covered < header.size {
            return Err(Qcow2Error::Field { what: "L1 size", value: header.l1_entries });
        }
        let refcount_bytes = header.refcount_clusters * cluster;
        if refcount_bytes == 0 || refcount_bytes > TABLE_BYTES_MAX {
            let value = header.refcount_clusters;
            return Err(Qcow2Error::Field { what: "reference count table clusters", value });
        }
        for (what, offset, bytes) in [
            ("the L1 table", header.l1_offset, header.l1_entries * 8),
            ("the reference count table", header.refcount_offset, refcount_bytes),
        ] {
            if offset.checked_add(bytes).is_none_or(|end| end > self.1) {
                return Err(Qcow2Error::Truncated { what, offset, len: self.1 });
            }
        }
        Ok(())
    }

    fn backing(&self, version: u32, cluster: u64, extensions: u64) -> Result<Option<Backing>, Qcow2Error> {
        let format = if version == 2 { None } else { self.backing_format(extensions, cluster)? };
        let offset = self.be64(8, "backing file offset")?;
        if offset == 0 {
            return Ok(None);
        }
        let len = u64::from(self.be32(16, "backing file name length")?);
        if len == 0 || len > 1023 {
            return Err(Qcow2Error::Field { what: "backing file name length", value: len });
        }
        if offset.checked_add(len).is_none_or(|end| end > cluster) {
            return Err(Qcow2Error::Field { what: "backing file offset", value: offset });
        }
        let name = self.slice(offset, len, "the name of the backing file")?;
        let name = str::from_utf8(name).map_err(|_| Qcow2Error::BackingName)?.to_owned();
        Ok(Some(Backing { name, format }))
    }

    /// Walks the header extensions: a list that must end within the first cluster.
    fn backing_format(&self, start: u64, cluster: u64) -> Result<Option<String>, Qcow2Error> {
        let mut at = start;
        let mut format = None;
        for _ in 0..EXTENSIONS_MAX {
            let head = self.slice(at, 8, "a header extension")?;
            let (kind, len) = (be32(head, 0).unwrap_or_default(), be32(head, 4).unwrap_or_default());
            if kind == 0 {
                return Ok(format);
            }
            let end = at + 8 + u64::from(len);
            if end > cluster {
                return Err(Qcow2Error::Field { what: "length of a header extension", value: len.into() });
            }
            let data = self.slice(at + 8, len.into(), "a header extension")?;
            match kind {
                EXTENSION_BACKING_FORMAT => format = Some(String::from_utf8_lossy(data).into_owned()),
                EXTENSION_EXTERNAL_DATA => return Err(Qcow2Error::Unsupported("an external data file is")),
                _ => {}
            }
            at = end.next_multiple_of(8);
        }
        Err(Qcow2Error::Field { what: "number of header extensions", value: EXTENSIONS_MAX })
    }

    fn table(&self, at: usize, cluster: u64, what: &'static str) -> Result<u64, Qcow2Error> {
        let offset = self.be64(at, what)?;
        if offset == 0 || offset % cluster != 0 {
            return Err(Qcow2Error::Field { what, value: offset });
        }
        Ok(offset)
    }

    fn slice(&self, at: u64, len: u64, what: &'static str) -> Result<&[u8], Qcow2Error> {
        let range = usize::try_from(at).ok().zip(usize::try_from(len).ok());
        range.and_then(|(at, len)| self.0.get(at..)?.get(..len)).ok_or(Qcow2Error::Truncated {
            what,
            offset: at,
            len: self.1,
        })
    }

    fn be32(&self, at: usize, what: &'static str) -> Result<u32, Qcow2Error> {
        be32(self.0, at).ok_or(Qcow2Error::Truncated { what, offset: at as u64, len: self.1 })
    }

    fn be64(&self, at: usize, what: &'static str) -> Result<u64, Qcow2Error> {
        be64(self.0, at).ok_or(Qcow2Error::Truncated { what, offset: at as u64, len: self.1 })
    }
}

/// `QFI\xfb`, which every qcow2 file starts with.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The header, its extensions and the backing file's name lie in the first cluster, in practice in its
/// first 64 KiB.
const HEADER_BYTES: u64 = 64 * 1024;
/// EBS's largest volume. With the largest clusters imago then caches at most 128 L2 tables of 2 MiB.
pub(crate) const SIZE_MAX: u64 = 64 << 40;
/// QEMU's limit for the L1 table and for the reference count table.
const TABLE_BYTES_MAX: u64 = 32 << 20;
const EXTENSIONS_MAX: u64 = 64;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_EXTERNAL_DATA: u32 = 0x4441_5441;
