//! A disk: a chain of raw and qcow2 files that reads and writes as one row of bytes.
//!
//! A [`Disk`] is shared between threads; cloning it is cheap and gives the same disk. Reads and writes
//! run at the same time. Discarding waits for them and holds them off, because it frees clusters that
//! they might just have looked up.
//!
//! * Sizes are whole sectors of 512 bytes. A raw file that ends within a sector is extended: what is
//!   missing reads as zeros, and the file grows when the guest first writes there.
//! * What was written before a [`Disk::flush`] that succeeded is on stable storage. Only a file without a
//!   name, which is gone with its last descriptor anyway, is not brought there: it is for scratch.
//! * No file names another: each layer is what it was told to be, and whatever a header says about its
//!   backing file is ignored here ([`crate::open`] reads it for the command line).

use std::fs::File;
use std::io;
use std::io::{Seek, SeekFrom};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use imago::file::File as Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::error::ErrorKind;
use crate::format::{Format, Layer};
use crate::qcow2::{Header, Qcow2Error};

/// An open disk.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    access: RwLock<FormatAccess<Storage>>,
    /// Only ever grows.
    size: AtomicU64,
    writable: bool,
    can_discard: bool,
    /// The file that is written has no name: it is gone with its last descriptor.
    is_scratch: bool,
    layers: Vec<LayerFacts>,
}

/// What is known about one file of a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
pub struct LayerFacts {
    /// How the file holds the disk.
    pub format: Format,
    /// Length of the file, bytes; a sparse file uses less room.
    pub file_bytes: u64,
    /// Size of the disk as this layer knows it, bytes.
    pub disk_bytes: u64,
}

/// Why files are no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No file was given.
    #[error("a disk needs at least one file")]
    NoLayers,
    /// A raw file was given with something beneath it, which it would hide.
    #[error("layer {layer} is raw and hides the layers beneath it")]
    Hidden {
        /// The raw layer, counted from 0 at the top.
        layer: usize,
    },
    /// A file holds no byte, or not even one sector.
    #[error("layer {layer} holds only {bytes} bytes: not a disk")]
    Empty {
        /// Which layer, counted from 0 at the top.
        layer: usize,
        /// Its length.
        bytes: u64,
    },
    /// A qcow2 file is broken.
    #[error("layer {layer} is a broken qcow2 file")]
    Qcow2 {
        /// Which layer, counted from 0 at the top.
        layer: usize,
        /// What is broken.
        #[source]
        source: Qcow2Error,
    },
    /// The host failed to read a file.
    #[error("cannot use layer {layer}")]
    Io {
        /// Which layer, counted from 0 at the top.
        layer: usize,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoLayers | Self::Hidden { .. } | Self::Empty { .. } => ErrorKind::NotADisk,
            Self::Qcow2 { source: Qcow2Error::Io(_), .. } | Self::Io { .. } => ErrorKind::Io,
            Self::Qcow2 { .. } => ErrorKind::BrokenQcow2,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Qcow2 { source, .. } => source.hint(),
            _ => None,
        }
    }
}

impl Disk {
    /// Opens a disk from its files: the top one first, beneath it its backing files in order. Only the
    /// top one is ever written, and only with `write`; the others can be open for reading only.
    ///
    /// # Errors
    /// A file is empty, is not what its format says, or cannot be read.
    pub fn open(layers: Vec<Layer>, write: bool) -> Result<Self, DiskError> {
        Self::open_as(layers, write, false)
    }

    /// Opens a disk for writing whose top file is thrown away in the end: nothing in it need survive the
    /// process, so that [`Disk::flush`] has nothing to do.
    ///
    /// # Errors
    /// As for [`Disk::open`].
    pub fn open_scratch(layers: Vec<Layer>) -> Result<Self, DiskError> {
        Self::open_as(layers, true, true)
    }

    fn open_as(layers: Vec<Layer>, write: bool, is_scratch: bool) -> Result<Self, DiskError> {
        let mut facts = Vec::with_capacity(layers.len());
        let mut beneath: Option<FormatAccess<Storage>> = None;
        let mut can_discard = false;
        for (layer, Layer { file, format }) in layers.into_iter().enumerate().rev() {
            let write = write && layer == 0;
            if format == Format::Raw && beneath.is_some() {
                return Err(DiskError::Hidden { layer });
            }
            let io = |source| DiskError::Io { layer, source };
            let file_bytes = file_len(&file).map_err(io)?;
            if file_bytes < SECTOR {
                return Err(DiskError::Empty { layer, bytes: file_bytes });
            }
            let access = match format {
                Format::Raw => {
                    can_discard = true;
                    open_raw(file, write).map_err(io)?
                }
                Format::Qcow2 => {
                    let header = check_qcow2(&file, file_bytes, write)
                        .map_err(|source| DiskError::Qcow2 { layer, source })?;
                    can_discard = header.can_discard();
                    open_qcow2(file, beneath.take(), write).map_err(io)?
                }
            };
            facts.push(LayerFacts { format, file_bytes, disk_bytes: access.size() });
            beneath = Some(access);
        }
        facts.reverse();
        let access = beneath.ok_or(DiskError::NoLayers)?;
        let size = AtomicU64::new(access.size().next_multiple_of(SECTOR));
        let access = RwLock::new(access);
        let inner = Inner { access, size, writable: write, can_discard, is_scratch, layers: facts };
        Ok(Self(Arc::new(inner)))
    }

    /// Size in bytes, a multiple of 512.
    pub fn size(&self) -> u64 {
        self.0.size.load(Ordering::Acquire)
    }

    /// Whether the disk was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.0.writable
    }

    /// Whether [`Disk::discard`] frees anything: not in qcow2 version 2.
    pub fn can_discard(&self) -> bool {
        self.0.writable && self.0.can_discard
    }

    /// The files, the top one first.
    pub fn layers(&self) -> &[LayerFacts] {
        &self.0.layers
    }

    /// Fills `buffer` from byte `offset` of the disk.
    ///
    /// # Errors
    /// The range is not within the disk, or a file cannot be read.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check_range(offset, buffer.len() as u64)?;
        self.access().read(buffer, offset)
    }

    /// Writes `buffer` to byte `offset` of the disk.
    ///
    /// # Errors
    /// The disk is read-only, the range is not within it, or a file cannot be written.
    pub fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.write_vector(buffer.into(), offset)
    }

    /// Fills `slices` one after the other from byte `offset` of the disk.
    ///
    /// # Errors
    /// As [`Disk::read_at`].
    pub fn read_vectored_at<B: BitmapSlice>(
        &self,
        slices: &[VolatileSlice<'_, B>],
        offset: u64,
    ) -> io::Result<()> {
        let (vector, _mapped) = IoVectorMut::from_volatile_slice(slices);
        self.check_range(offset, vector.len())?;
        self.access().readv(vector, offset)
    }

    /// Writes `slices` one after the other to byte `offset` of the disk.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    pub fn write_vectored_at<B: BitmapSlice>(
        &self,
        slices: &[VolatileSlice<'_, B>],
        offset: u64,
    ) -> io::Result<()> {
        let (vector, _mapped) = IoVector::from_volatile_slice(slices);
        self.write_vector(vector, offset)
    }

    /// Makes `length` bytes from `offset` read as zeros. With `unmap` their room in the file is given
    /// back where that is possible.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.check_write(offset, length)?;
        let result = if unmap && self.0.can_discard {
            self.exclusive(|access| access.discard_to_zero(offset, length))
        } else {
            self.access().write_zeroes(offset, length)
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.write_zero_bytes(offset, length),
            result => result,
        }
    }

    /// Gives back the room that `length` bytes from `offset` take in the file. They then read as
    /// anything. A file that cannot give room back keeps it: that is no error.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_write(offset, length)?;
        if !self.0.can_discard {
            return Ok(());
        }
        match self.exclusive(|access| access.discard_to_any(offset, length)) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    /// Brings all that was written to stable storage: format metadata first to the file, then the file
    /// to the device.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&self) -> io::Result<()> {
        if !self.0.writable || self.0.is_scratch {
            return Ok(());
        }
        let access = self.access();
        access.flush()?;
        access.sync()
    }

    /// Makes the disk `bytes` long: what is new reads as zeros. Its top file records that before this
    /// returns.
    ///
    /// # Errors
    /// The disk is read-only or longer than that, `bytes` is no multiple of 512, or the file cannot grow.
    pub fn grow(&self, bytes: u64) -> io::Result<()> {
        if !self.0.writable {
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the disk is read-only"));
        }
        // One at a time, and nobody is in the middle of a request.
        self.exclusive(|access| {
            let size = self.size();
            if !bytes.is_multiple_of(SECTOR) || bytes < size {
                let message = format!("a disk of {size} bytes cannot become {bytes} bytes long");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            access.resize_grow(bytes, imago::format::PreallocateMode::None)?;
            access.flush()?;
            self.0.size.store(bytes, Ordering::Release);
            Ok(())
        })
    }

    fn write_vector(&self, vector: IoVector<'_>, offset: u64) -> io::Result<()> {
        self.check_write(offset, vector.len())?;
        self.access().writev(vector, offset)
    }

    /// Zeros the hard way, for formats that know no other.
    fn write_zero_bytes(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(length).unwrap_or(ZERO_CHUNK).min(ZERO_CHUNK)];
        while length > 0 {
            let chunk = zeros.get(..usize::try_from(length).unwrap_or(ZERO_CHUNK)).unwrap_or(&zeros);
            self.access().write(chunk, offset)?;
            offset += chunk.len() as u64;
            length -= chunk.len() as u64;
        }
        Ok(())
    }

    /// Refuses what cannot be written, and makes a file that ends within a sector whole.
    fn check_write(&self, offset: u64, length: u64) -> io::Result<()> {
        if !self.0.writable {
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the disk is read-only"));
        }
        self.check_range(offset, length)?;
        let access = self.access();
        if offset + length > access.size() {
            access.resize_grow(self.size(), imago::format::PreallocateMode::None)?;
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, length: u64) -> io::Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size()) {
            return Ok(());
        }
        let size = self.size();
        let message = format!("{length} bytes from byte {offset} are not within the disk's {size} bytes");
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }

    fn access(&self) -> RwLockReadGuard<'_, FormatAccess<Storage>> {
        self.0.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive<T>(&self, act: impl FnOnce(&mut FormatAccess<Storage>) -> T) -> T {
        act(&mut self.0.access.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Formats `file`, which is empty, as a qcow2 file of `size` bytes that names no backing file: as the
/// first of a disk's layers it takes all writes and shows the layers beneath where nothing was written.
/// Nothing is brought to stable storage.
///
/// # Errors
/// The file cannot be written, or `size` is 0 or beyond 64 TiB.
pub fn create_overlay(file: File, size: u64) -> io::Result<()> {
    create(file, size, None)
}

/// Formats `file`, which is empty, as a qcow2 file of `size` bytes that shows what is in the file `backing`
/// until it is written to: a path relative to the folder of the file itself, or an absolute one. That file's
/// format is recorded. Nothing is brought to stable storage.
///
/// # Errors
/// The file cannot be written, or `size` is 0 or beyond 64 TiB.
pub fn create_overlay_over(file: File, size: u64, backing: &str, format: Format) -> io::Result<()> {
    create(file, size, Some((backing, format)))
}

fn create(file: File, size: u64, backing: Option<(&str, Format)>) -> io::Result<()> {
    if size == 0 || size > crate::qcow2::SIZE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no disk can hold {size} bytes")));
    }
    let mut builder = Qcow2::<Storage>::create_builder(Storage::try_from(file)?).size(size);
    if let Some((name, format)) = backing {
        let format = match format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        builder = builder.backing(name.to_owned(), format.to_owned());
    }
    builder.create()
}

fn open_raw(file: File, write: bool) -> io::Result<FormatAccess<Storage>> {
    let raw = Raw::builder(Storage::try_from(file)?).write(write).open(DenyImplicitOpenGate::default())?;
    Ok(FormatAccess::new(raw))
}

fn open_qcow2(
    file: File,
    beneath: Option<FormatAccess<Storage>>,
    write: bool,
) -> io::Result<FormatAccess<Storage>> {
    let qcow2 = Qcow2::<Storage>::builder(Storage::try_from(file)?)
        .backing(beneath)
        .data_file(None)
        .write(write)
        .open(DenyImplicitOpenGate::default())?;
    Ok(FormatAccess::new(qcow2))
}

fn check_qcow2(file: &File, len: u64, write: bool) -> Result<Header, Qcow2Error> {
    let header = Header::read(file, len)?;
    header.check_tables(file, len, write)?;
    Ok(header)
}

/// The length of a file or block device, whose metadata says 0.
pub(crate) fn file_len(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// The unit of a disk's size, bytes.
pub(crate) const SECTOR: u64 = 512;
const ZERO_CHUNK: usize = 1 << 20;
