//! Where a machine's kernel comes from, at each start and each reboot anew.

use std::{
    fs::File,
    io::{self, Read, Seek},
};

use ec2vmm_devices::Memory;
use ec2vmm_image::Disk;
use ec2vmm_vmm_api::control::Booted;
use vm_memory::{VolatileMemoryError, VolatileSlice, bitmap::BitmapSlice, io::ReadVolatile};

use crate::x86_64::boot::{self, BootError, Entry, Initrd, Take};

/// Where kernel, initrd and command line come from.
pub enum BootSource {
    /// From the boot entry on the machine's first disk.
    Disk {
        /// The disk, as the guest has left it.
        disk: Disk,
        /// Words added at the end of the entry's command line.
        append: Option<String>,
    },
    /// From files.
    Files {
        /// bzImage or ELF.
        kernel: File,
        /// Initial RAM disk.
        initrd: Option<File>,
        /// The whole command line.
        cmdline: String,
    },
}

/// No kernel could be put into memory.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nothing bootable was found on the disk.
    #[error("the first disk cannot be booted")]
    Disk(#[source] ec2vmm_image::BootError),
    /// A kernel or initrd that was given cannot be read.
    #[error("reading the {0} that was given")]
    File(&'static str, #[source] io::Error),
    /// It was found, but does not go into this machine.
    #[error("loading the kernel {kernel}")]
    Load {
        /// Where it was found.
        kernel: String,
        /// What is wrong.
        source: BootError,
    },
}

impl BootSource {
    /// Finds the kernel and puts it into memory.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn load(
        &mut self,
        memory: &Memory,
        memory_mib: u64,
        rsdp: u64,
    ) -> Result<(Entry, Booted), SourceError> {
        match self {
            Self::Disk { disk, append } => from_disk(disk, append.as_deref(), memory, memory_mib, rsdp),
            Self::Files { kernel, initrd, cmdline } => {
                let size = match initrd {
                    Some(file) => file_size(file).map_err(|source| SourceError::File("initrd", source))?,
                    None => 0,
                };
                let mut read = |take: &mut Take<'_>| copy(initrd.as_mut(), take);
                let initrd = (size > 0).then_some(Initrd { size, read: &mut read });
                let booted = Booted {
                    kernel: GIVEN.into(),
                    initrd: initrd.as_ref().map(|_| GIVEN.into()),
                    cmdline: cmdline.clone(),
                };
                let entry = boot::load(memory, memory_mib, kernel, initrd, cmdline, rsdp)
                    .map_err(|source| SourceError::Load { kernel: GIVEN.into(), source })?;
                Ok((entry, booted))
            }
        }
    }
}

fn from_disk(
    disk: &Disk,
    append: Option<&str>,
    memory: &Memory,
    memory_mib: u64,
    rsdp: u64,
) -> Result<(Entry, Booted), SourceError> {
    let found = ec2vmm_image::find_boot(disk).map_err(SourceError::Disk)?;
    let mut kernel = Pieces::of(found.kernel().map_err(SourceError::Disk)?);
    let entry = &found.entry;
    let cmdline = match append {
        Some(append) => format!("{} {append}", entry.cmdline),
        None => entry.cmdline.clone(),
    };
    let booted = Booted {
        kernel: entry.kernel.clone(),
        initrd: (!entry.initrds.is_empty()).then(|| entry.initrds.join(" ")),
        cmdline: cmdline.clone(),
    };
    let size = found.initrd_size();
    let mut read = |take: &mut Take<'_>| found.read_initrd(take).map_err(io::Error::other);
    let initrd = (size > 0).then_some(Initrd { size, read: &mut read });
    let entry = boot::load(memory, memory_mib, &mut kernel, initrd, &cmdline, rsdp)
        .map_err(|source| SourceError::Load { kernel: booted.kernel.clone(), source })?;
    Ok((entry, booted))
}

/// A file that goes into guest memory piece by piece, by way of a buffer that stays in the processor's cache.
struct Pieces<R> {
    file: R,
    buffer: Vec<u8>,
}

impl<R> Pieces<R> {
    fn of(file: R) -> Self {
        Self { file, buffer: vec![0; COPY_BYTES] }
    }
}

impl<R: Read> Read for Pieces<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl<R: Seek> Seek for Pieces<R> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl<R: Read> ReadVolatile for Pieces<R> {
    /// Fills all of `memory` unless the file ends before: who loads a kernel asks once.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        memory: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut done = 0;
        while done < memory.len() {
            let len = self.buffer.len().min(memory.len() - done);
            let buffer = self.buffer.get_mut(..len).unwrap_or_default();
            let count = self.file.read(buffer).map_err(VolatileMemoryError::IOError)?;
            if count == 0 {
                break;
            }
            memory.subslice(done, count)?.copy_from(buffer.get(..count).unwrap_or_default());
            done += count;
        }
        Ok(done)
    }
}

fn copy(file: Option<&mut File>, take: &mut Take<'_>) -> io::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => take(buffer.get(..count).unwrap_or_default())?,
        }
    }
}

/// Also goes back to its start.
fn file_size(file: &mut File) -> io::Result<u64> {
    let size = file.seek(io::SeekFrom::End(0))?;
    file.rewind()?;
    Ok(size)
}

const COPY_BYTES: usize = 64 * 1024;
const GIVEN: &str = "given";
