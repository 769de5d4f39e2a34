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
                let mut kernel = Straight::from(kernel);
                let entry = boot::load(memory, memory_mib, &mut kernel, initrd, cmdline, rsdp)
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

/// A file that goes straight into guest memory, but for zeroes: they are there already. What the file has none
/// but zeroes for, such as a kernel's BSS, is not copied, and the host need not find memory for it yet.
struct Straight<'a> {
    file: &'a mut File,
    /// For a look ahead. As long as it finds zeroes, the next is taken; then the rest of the huge page is not
    /// looked at any more, since the host has to find memory for all of it.
    buffer: Vec<u8>,
}

impl<'a> From<&'a mut File> for Straight<'a> {
    fn from(file: &'a mut File) -> Self {
        Self { file, buffer: vec![0; COPY_BYTES] }
    }
}

impl Read for Straight<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for Straight<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl ReadVolatile for Straight<'_> {
    /// Fills all of `memory`, which is zero, unless the file ends before: who loads a kernel asks once.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        memory: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut done = 0;
        while done < memory.len() {
            let address = memory.ptr_guard().as_ptr().addr() + done;
            let page_left = (HUGE_PAGE_BYTES - address % HUGE_PAGE_BYTES).min(memory.len() - done);
            let len = self.buffer.len().min(page_left);
            let buffer = self.buffer.get_mut(..len).unwrap_or_default();
            let count = self.file.read(buffer).map_err(VolatileMemoryError::IOError)?;
            if count == 0 {
                break;
            }
            let found = buffer.get(..count).unwrap_or_default();
            if !is_zero(found) {
                memory.subslice(done, count)?.copy_from(found);
                let mut rest = memory.subslice(done + count, page_left - count)?;
                done += read_whole(self.file, &mut rest)?;
            }
            done += count;
        }
        Ok(done)
    }
}

/// Fills all of `memory` unless the file ends before.
fn read_whole<B: BitmapSlice>(
    file: &mut File,
    memory: &mut VolatileSlice<'_, B>,
) -> Result<usize, VolatileMemoryError> {
    let mut done = 0;
    while done < memory.len() {
        match file.read_volatile(&mut memory.offset(done)?)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// Looks at many bytes at once.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZERO_CHUNK).all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
}

/// A file that goes into guest memory piece by piece, by way of a buffer that stays in the processor's cache,
/// but for zeroes: they are there already.
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
    /// Fills all of `memory`, which is zero, unless the file ends before: who loads a kernel asks once.
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
            let found = buffer.get(..count).unwrap_or_default();
            if !is_zero(found) {
                memory.subslice(done, count)?.copy_from(found);
            }
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
/// What the host finds memory for at once, at best.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Bytes that are looked at before the first of them is asked for.
const ZERO_CHUNK: usize = 256;
const GIVEN: &str = "given";

#[cfg(test)]
#[allow(unsafe_code, reason = "the host is asked for which pages it has found memory")]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::memory;

    const MEMORY_MIB: u64 = 32;
    const PAGE_BYTES: usize = 4096;

    /// A file of `len` bytes with these pieces in it, and zeroes around them.
    fn file(len: u64, pieces: &[(u64, Vec<u8>)]) -> (File, Vec<u8>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        let mut content = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut content, 0).unwrap();
        (file, content)
    }

    /// What lies in memory from `start` on once a file was read to there.
    fn loaded(reader: &mut impl ReadVolatile, memory: &Memory, start: u64, len: usize) -> Vec<u8> {
        memory.read_exact_volatile_from(GuestAddress(start), reader, len).unwrap();
        let mut found = vec![1; len];
        memory.read_slice(&mut found, GuestAddress(start)).unwrap();
        found
    }

    /// For how many pages from `start` on the host has found memory.
    fn resident(memory: &Memory, start: u64, pages: usize) -> usize {
        let address = memory.get_host_address(GuestAddress(start)).unwrap();
        let mut found = vec![0_u8; pages];
        // SAFETY: the range is mapped, and `found` has a byte for each of its pages.
        let result = unsafe { libc::mincore(address.cast(), pages * PAGE_BYTES, found.as_mut_ptr()) };
        assert_eq!(result, 0);
        found.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn what_is_zero_in_a_kernels_file_takes_no_memory() {
        let pages = HUGE_PAGE_BYTES / PAGE_BYTES;
        let two_pages = 2 * HUGE_PAGE_BYTES as u64;
        let (mut file, content) = file(2 * two_pages, &[(0, vec![7; 100]), (two_pages, vec![8; 100])]);
        let memory = memory::map(MEMORY_MIB).unwrap();
        let start = HUGE_PAGE_BYTES as u64;
        memory
            .read_exact_volatile_from(GuestAddress(start), &mut Straight::from(&mut file), content.len())
            .unwrap();
        assert!(resident(&memory, start, pages) > 0);
        assert_eq!(resident(&memory, start + HUGE_PAGE_BYTES as u64, pages), 0);
        assert!(resident(&memory, start + two_pages, pages) > 0);
        let mut found = vec![1; content.len()];
        memory.read_slice(&mut found, GuestAddress(start)).unwrap();
        assert!(found == content);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn memory_has_what_the_file_has(
            start in 1_u64..(4 << 20),
            len in 1_u64..(6 << 20),
            pieces in proptest::collection::vec((0_u64..(6 << 20), 1_usize..300_000, 1_u8..), 0..5),
        ) {
            let inside = |(at, bytes, value): (u64, usize, u8)| {
                (at < len).then(|| (at, vec![value; bytes.min(usize::try_from(len - at).unwrap())]))
            };
            let pieces: Vec<_> = pieces.into_iter().filter_map(inside).collect();
            let (mut file, content) = file(len, &pieces);
            let memory = memory::map(MEMORY_MIB).unwrap();
            prop_assert!(loaded(&mut Straight::from(&mut file), &memory, start, content.len()) == content);
            file.rewind().unwrap();
            let memory = memory::map(MEMORY_MIB).unwrap();
            prop_assert!(loaded(&mut Pieces::of(file), &memory, start, content.len()) == content);
        }

        #[test]
        fn one_byte_is_enough_to_be_no_zero(len in 1_usize..5000, at: prop::sample::Index, value in 1_u8..) {
            let mut bytes = vec![0; len];
            prop_assert!(is_zero(&bytes));
            bytes[at.index(len)] = value;
            prop_assert!(!is_zero(&bytes));
        }
    }
}
