//! Puts a kernel, an initrd and a command line into guest memory, and says where to begin.
//!
//! bzImage is entered by Linux's 64-bit boot protocol, and so is an ELF file that says it is Linux: entered
//! by PVH, Linux looks once more for Xen, which takes 256 exits. Any other ELF file is entered by PVH where
//! it has the note, else by the 64-bit protocol too.

use std::io::{self, Read, Seek};

use ec2vmm_devices::Memory;
use linux_loader::{
    bootparam::{boot_e820_entry, boot_params, setup_header},
    loader::{
        BzImage, Elf, KernelLoader, KernelLoaderResult,
        elf::{self, PvhBootCapability, start_info},
    },
};
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemoryError, ReadVolatile};

use super::layout;

/// How the first vCPU begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry {
    /// Linux's 64-bit boot protocol: long mode, `rsi` points to the boot parameters.
    Linux64 {
        /// First instruction.
        rip: u64,
    },
    /// PVH: 32-bit protected mode, `ebx` points to the start info.
    Pvh {
        /// First instruction.
        eip: u32,
    },
}

/// The kernel cannot be put into this machine's memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Neither bzImage nor ELF for x86-64.
    #[error("the kernel is neither a bzImage nor an ELF file for x86-64")]
    NotAKernel(#[source] linux_loader::loader::Error),
    /// A bzImage without the 64-bit entry point.
    #[error("the kernel is a 32-bit bzImage")]
    Not64Bit,
    /// The kernel is larger than memory.
    #[error(
        "a kernel of {kernel_mib} MiB and an initrd of {initrd_mib} MiB do not fit into {memory_mib} MiB of memory"
    )]
    TooLarge {
        /// What the kernel needs to start, rounded up to MiB.
        kernel_mib: u64,
        /// The initrd's size, rounded up to MiB.
        initrd_mib: u64,
        /// The machine's memory.
        memory_mib: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("a command line of {len} bytes; the kernel takes {max}")]
    CommandLine {
        /// Its length.
        len: usize,
        /// The longest that goes.
        max: usize,
    },
    /// The kernel could not be read.
    #[error("reading the kernel")]
    Kernel(#[source] io::Error),
    /// The initrd could not be read.
    #[error("reading the initrd")]
    Initrd(#[source] io::Error),
    /// Guest memory is smaller than the low area that booting needs.
    #[error("writing boot data into guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// An initrd that is yet to be read.
pub struct Initrd<'a> {
    /// Its size in bytes.
    pub size: u64,
    /// Gives exactly `size` bytes, piece by piece, to whom it is called with.
    pub read: &'a mut dyn FnMut(&mut Take<'_>) -> io::Result<()>,
}

/// Who takes an initrd, piece by piece.
pub type Take<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// Loads the kernel and all that it is told, and says where to begin. What lies in a file goes from
/// there into guest memory, with no copy in between.
///
/// # Errors
/// See [`BootError`].
pub fn load(
    memory: &Memory,
    memory_mib: u64,
    kernel: &mut (impl Read + ReadVolatile + Seek),
    initrd: Option<Initrd<'_>>,
    cmdline: &str,
    rsdp: u64,
) -> Result<Entry, BootError> {
    let image = load_kernel(memory, memory_mib, kernel)?;
    if image.end > low_ram_end(memory_mib) {
        let initrd = initrd.map_or(0, |initrd| initrd.size);
        return Err(too_large(&image, initrd, memory_mib));
    }
    let initrd = initrd.map(|mut initrd| load_initrd(memory, memory_mib, &image, &mut initrd)).transpose()?;
    write_cmdline(memory, cmdline, image.cmdline_max)?;
    match image.entry {
        Entry::Linux64 { .. } => write_boot_params(memory, memory_mib, &image, initrd, cmdline, rsdp)?,
        Entry::Pvh { .. } => write_start_info(memory, memory_mib, initrd, rsdp)?,
    }
    Ok(image.entry)
}

/// A kernel in memory.
struct Image {
    entry: Entry,
    /// The end of what the kernel needs before it knows its memory.
    end: u64,
    header: setup_header,
    cmdline_max: usize,
    /// Where an initrd may end at the latest.
    initrd_end_max: u64,
}

const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry point lies behind the 32-bit one.
const ENTRY_64_OFFSET: u64 = 0x200;
const ELF_MAGIC: &[u8] = b"\x7fELF";

fn load_kernel(
    memory: &Memory,
    memory_mib: u64,
    kernel: &mut (impl Read + ReadVolatile + Seek),
) -> Result<Image, BootError> {
    let size = kernel.seek(io::SeekFrom::End(0)).map_err(BootError::Kernel)?;
    let is_elf = begins_with(kernel, ELF_MAGIC).map_err(BootError::Kernel)?;
    let start = Some(GuestAddress(layout::KERNEL));
    let failed = |source| match source {
        linux_loader::loader::Error::Bzimage(
            linux_loader::loader::bzimage::Error::ReadBzImageCompressedKernel,
        )
        | linux_loader::loader::Error::Elf(linux_loader::loader::elf::Error::ReadKernelImage) => {
            BootError::TooLarge { kernel_mib: mib_up(size), initrd_mib: 0, memory_mib }
        }
        source => BootError::NotAKernel(source),
    };
    if is_elf {
        let is_linux = check_program_headers(kernel)?;
        // Only the lowest address is checked here: a kernel links itself to where it belongs.
        let loaded = Elf::load(memory, None, kernel, start).map_err(failed)?;
        Ok(from_elf(&loaded, is_linux))
    } else {
        let loaded = BzImage::load(memory, start, kernel, start).map_err(failed)?;
        from_bzimage(&loaded)
    }
}

/// Refuses an ELF file with more program headers than a kernel has, or with notes that go on and on:
/// loading it reads the file once for each, and who made the file is a stranger. Says whether one of the
/// notes is Linux's.
fn check_program_headers(file: &mut (impl Read + Seek)) -> Result<bool, BootError> {
    const PROGRAM_HEADERS_MAX: u64 = 64;
    const NOTES_BYTES_MAX: u64 = 1 << 20;
    let header: [u8; 64] = read_at(file, 0)?;
    let (offset, count) = (le_u64(&header, 32), le_u64(&header, 56) & 0xffff);
    if count > PROGRAM_HEADERS_MAX {
        return Err(not_a_kernel(elf::Error::InvalidProgramHeaderSize));
    }
    let mut is_linux = false;
    for index in 0..count {
        let offset = offset.checked_add(index * PROGRAM_HEADER_BYTES as u64);
        let offset = offset.ok_or_else(|| not_a_kernel(elf::Error::InvalidProgramHeaderOffset))?;
        let header: [u8; PROGRAM_HEADER_BYTES] = read_at(file, offset)?;
        let (kind, offset, bytes) =
            (le_u64(&header, 0) & 0xffff_ffff, le_u64(&header, 8), le_u64(&header, 32));
        if kind != PT_NOTE {
            continue;
        }
        if bytes > NOTES_BYTES_MAX {
            return Err(not_a_kernel(elf::Error::InvalidPvhNote));
        }
        let mut notes = Vec::new();
        file.seek(io::SeekFrom::Start(offset)).map_err(BootError::Kernel)?;
        file.by_ref().take(bytes).read_to_end(&mut notes).map_err(BootError::Kernel)?;
        is_linux |= names_linux(&notes);
    }
    file.rewind().map_err(BootError::Kernel)?;
    Ok(is_linux)
}

/// Whether one of these notes is Linux's (`include/linux/elfnote.h`; since 4.19 every kernel has one).
fn names_linux(notes: &[u8]) -> bool {
    const NAME: &[u8] = b"Linux\0";
    let mut rest = notes;
    while let Some((head, after)) = rest.split_first_chunk::<12>() {
        // Sizes of name and description, each filled up to four bytes, and the type.
        let [name_len, description_len] = [0, 4].map(|at| le_u32(head, at) as usize);
        if name_len == NAME.len() && after.starts_with(NAME) {
            return true;
        }
        let len = name_len.next_multiple_of(4).saturating_add(description_len.next_multiple_of(4));
        rest = after.get(len..).unwrap_or_default();
    }
    false
}

fn read_at<const N: usize>(file: &mut (impl Read + Seek), offset: u64) -> Result<[u8; N], BootError> {
    let mut bytes = [0; N];
    file.seek(io::SeekFrom::Start(offset)).map_err(BootError::Kernel)?;
    file.read_exact(&mut bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => not_a_kernel(elf::Error::ReadProgramHeader),
        _ => BootError::Kernel(error),
    })?;
    Ok(bytes)
}

/// Eight bytes; zeroes where there are not so many.
fn le_u64(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// Four bytes; zeroes where there are not so many.
fn le_u32(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn not_a_kernel(error: elf::Error) -> BootError {
    BootError::NotAKernel(linux_loader::loader::Error::Elf(error))
}

/// Whether a file begins so. Leaves it at its start.
fn begins_with(file: &mut (impl Read + Seek), magic: &[u8]) -> io::Result<bool> {
    let mut first = Vec::new();
    file.rewind()?;
    file.by_ref().take(magic.len() as u64).read_to_end(&mut first)?;
    file.rewind()?;
    Ok(first == magic)
}

fn from_elf(loaded: &KernelLoaderResult, is_linux: bool) -> Image {
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(eip) if !is_linux => {
            Entry::Pvh { eip: u32::try_from(eip.raw_value()).unwrap_or(u32::MAX) }
        }
        _ => Entry::Linux64 { rip: loaded.kernel_load.raw_value() },
    };
    let header = setup_header { boot_flag: 0xaa55, header: 0x5372_6448, ..Default::default() };
    Image {
        entry,
        end: loaded.kernel_end,
        header,
        cmdline_max: CMDLINE_BYTES_MAX,
        initrd_end_max: layout::HOLE_32.start,
    }
}

fn from_bzimage(loaded: &KernelLoaderResult) -> Result<Image, BootError> {
    let header = loaded.setup_header.unwrap_or_default();
    let (version, xloadflags) = (header.version, header.xloadflags);
    if version < 0x20c || xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::Not64Bit);
    }
    // Where it decompresses itself to, before it looks for a better place.
    let (preferred, init_size) = (header.pref_address, u64::from(header.init_size));
    Ok(Image {
        entry: Entry::Linux64 { rip: loaded.kernel_load.raw_value() + ENTRY_64_OFFSET },
        end: loaded.kernel_end.max(preferred.saturating_add(init_size)),
        header,
        cmdline_max: CMDLINE_BYTES_MAX.min(header.cmdline_size as usize),
        initrd_end_max: layout::HOLE_32.start.min(u64::from(header.initrd_addr_max) + 1),
    })
}

#[derive(Clone, Copy)]
struct Loaded {
    start: u64,
    size: u64,
}

/// As high as it may be, out of the way of the kernel's decompression.
fn load_initrd(
    memory: &Memory,
    memory_mib: u64,
    image: &Image,
    initrd: &mut Initrd<'_>,
) -> Result<Loaded, BootError> {
    let end = low_ram_end(memory_mib).min(image.initrd_end_max);
    let start = end.checked_sub(initrd.size).map(|start| start / PAGE_BYTES * PAGE_BYTES);
    let start =
        start.filter(|&start| start >= image.end).ok_or_else(|| too_large(image, initrd.size, memory_mib))?;
    let mut at = start;
    let mut take = |bytes: &[u8]| {
        // Checked before it is written: what the source gives beyond its size would overwrite what is there.
        if bytes.len() as u64 > start + initrd.size - at {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more than its size"));
        }
        memory.write_slice(bytes, GuestAddress(at)).map_err(io::Error::other)?;
        at += bytes.len() as u64;
        Ok(())
    };
    (initrd.read)(&mut take).map_err(BootError::Initrd)?;
    if at != start + initrd.size {
        return Err(BootError::Initrd(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(Loaded { start, size: initrd.size })
}

fn low_ram_end(memory_mib: u64) -> u64 {
    layout::ram(memory_mib).first().map_or(0, |range| range.end)
}

fn too_large(image: &Image, initrd_bytes: u64, memory_mib: u64) -> BootError {
    BootError::TooLarge { kernel_mib: mib_up(image.end), initrd_mib: mib_up(initrd_bytes), memory_mib }
}

fn write_cmdline(memory: &Memory, cmdline: &str, max: usize) -> Result<(), BootError> {
    if cmdline.len() > max {
        return Err(BootError::CommandLine { len: cmdline.len(), max });
    }
    memory.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE.start))?;
    memory.write_obj(0_u8, GuestAddress(layout::CMDLINE.start + cmdline.len() as u64))?;
    Ok(())
}

/// Linux's "zero page".
#[allow(
    clippy::cast_possible_truncation,
    reason = "every address here lies below 4 GiB; the halves above are zero"
)]
fn write_boot_params(
    memory: &Memory,
    memory_mib: u64,
    image: &Image,
    initrd: Option<Loaded>,
    cmdline: &str,
    rsdp: u64,
) -> Result<(), BootError> {
    /// "Undefined": this loader has no number of its own.
    const LOADER_UNDEFINED: u8 = 0xff;
    let mut params = boot_params { hdr: image.header, acpi_rsdp_addr: rsdp, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE.start as u32;
    params.hdr.cmdline_size = cmdline.len() as u32;
    if let Some(Loaded { start, size }) = initrd {
        params.hdr.ramdisk_image = start as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    for (slot, region) in params.e820_table.iter_mut().zip(layout::memory_map(memory_mib)) {
        *slot = boot_e820_entry { addr: region.start, size: region.len, r#type: region.kind.e820() };
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    Ok(())
}

/// PVH's start info, with its list of modules and its memory map behind it.
fn write_start_info(
    memory: &Memory,
    memory_mib: u64,
    initrd: Option<Loaded>,
    rsdp: u64,
) -> Result<(), BootError> {
    const MAGIC: u32 = 0x336e_c578;
    let modules = layout::PVH_START_INFO + size_of::<start_info::hvm_start_info>() as u64;
    let map = modules + size_of::<start_info::hvm_modlist_entry>() as u64;
    let mut entries = 0;
    for region in layout::memory_map(memory_mib) {
        let entry = start_info::hvm_memmap_table_entry {
            addr: region.start,
            size: region.len,
            type_: region.kind.e820(),
            reserved: 0,
        };
        let entry_bytes = size_of_val(&entry) as u64;
        memory.write_slice(
            MemoryMapEntry(entry).as_slice(),
            GuestAddress(map + u64::from(entries) * entry_bytes),
        )?;
        entries += 1;
    }
    if let Some(Loaded { start, size }) = initrd {
        let module = start_info::hvm_modlist_entry { paddr: start, size, cmdline_paddr: 0, reserved: 0 };
        memory.write_slice(Module(module).as_slice(), GuestAddress(modules))?;
    }
    let info = start_info::hvm_start_info {
        magic: MAGIC,
        version: 1,
        flags: 0,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: modules,
        cmdline_paddr: layout::CMDLINE.start,
        rsdp_paddr: rsdp,
        memmap_paddr: map,
        memmap_entries: entries,
        reserved: 0,
    };
    memory.write_slice(StartInfo(info).as_slice(), GuestAddress(layout::PVH_START_INFO))?;
    Ok(())
}

macro_rules! byte_valued {
    ($($name:ident($inner:path);)+) => {$(
        #[derive(Clone, Copy, Default)]
        #[repr(transparent)]
        struct $name($inner);
        // SAFETY: the C structure holds only integers, has no padding (its fields are aligned by
        // design of the PVH interface), and every bit pattern of it is valid.
        #[allow(unsafe_code, reason = "plain data for guest memory")]
        unsafe impl ByteValued for $name {}
    )+};
}

byte_valued! {
    StartInfo(start_info::hvm_start_info);
    MemoryMapEntry(start_info::hvm_memmap_table_entry);
    Module(start_info::hvm_modlist_entry);
}

fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Without the terminating zero.
#[allow(clippy::cast_possible_truncation, reason = "64 KiB")]
const CMDLINE_BYTES_MAX: usize = (layout::CMDLINE.end - layout::CMDLINE.start - 1) as usize;
const PAGE_BYTES: u64 = 4096;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_NOTE: u64 = 4;

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::{BootError, Entry, load};
    use crate::memory;

    /// Loads a kernel without an initrd into 32 MiB.
    fn load_into_32_mib(kernel: &[u8]) -> Result<Entry, BootError> {
        load(&memory::map(32).unwrap(), 32, &mut Cursor::new(kernel), None, "", 0)
    }

    /// A bzImage of which nothing but the header is one.
    fn bzimage(init_size: u32) -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]); // setup_sects
        put(0x202, b"HdrS");
        put(0x206, &0x020f_u16.to_le_bytes());
        put(0x211, &[1]); // loaded high
        put(0x214, &0x10_0000_u32.to_le_bytes()); // code32_start
        put(0x236, &1_u16.to_le_bytes()); // 64-bit entry
        put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
        put(0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
        put(0x260, &init_size.to_le_bytes());
        file
    }

    #[test]
    fn a_kernel_that_has_no_room_to_unpack_itself_is_too_large_without_an_initrd_too() {
        assert_eq!(load_into_32_mib(&bzimage(16 << 20)).unwrap(), Entry::Linux64 { rip: 0x10_0200 });
        let error = load_into_32_mib(&bzimage((16 << 20) + 1)).unwrap_err();
        assert!(matches!(error, BootError::TooLarge { kernel_mib: 33, initrd_mib: 0, memory_mib: 32 }));
    }

    /// An ELF file with so many program headers, all notes of so many bytes.
    fn elf(headers: u16, bytes: u64) -> Vec<u8> {
        let mut file = vec![0; 64];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(24, &0x10_0000_u64.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(56, &headers.to_le_bytes());
        for _ in 0..headers {
            let mut header = vec![0; 56];
            header[0] = 4;
            header[32..40].copy_from_slice(&bytes.to_le_bytes());
            file.extend(header);
        }
        file
    }

    #[test]
    fn an_elf_file_that_says_it_is_linux_is_entered_as_linux() {
        let note = |name: &[u8; 8], len: u8, kind: u8, description: u64| {
            let mut note = vec![len, 0, 0, 0, 8, 0, 0, 0, kind, 0, 0, 0];
            note.extend(name);
            note.extend(description.to_le_bytes());
            note
        };
        // What a kernel with support for Xen has: the PVH entry point, and perhaps its own.
        let pvh = note(b"Xen\0\0\0\0\0", 4, 18, 0x10_0850);
        let pvh = [&pvh[..16], &pvh[20..]].concat();
        let linux = note(b"Linux\0\0\0", 6, 1, 0);
        let cases = [
            (pvh.clone(), Entry::Pvh { eip: 0x10_0850 }),
            ([pvh.clone(), linux.clone()].concat(), Entry::Linux64 { rip: 0x10_0000 }),
            ([linux, pvh].concat(), Entry::Linux64 { rip: 0x10_0000 }),
        ];
        for (notes, entry) in cases {
            let mut file = elf(1, notes.len() as u64);
            file[64 + 8] = 120;
            file.extend(notes);
            assert_eq!(load_into_32_mib(&file).unwrap(), entry);
        }
    }

    #[test]
    fn notes_that_are_cut_short_say_nothing() {
        assert!(!super::names_linux(b""));
        assert!(!super::names_linux(b"\x06\0\0\0\0\0\0\0\x01\0\0\0Linu"));
        assert!(!super::names_linux(&[0xff; 64]));
    }

    #[test]
    fn an_elf_file_that_would_be_read_for_ever_is_refused() {
        load_into_32_mib(&elf(64, 0)).unwrap();
        for (headers, bytes) in [(65, 0), (1, (1 << 20) + 1)] {
            let error = load_into_32_mib(&elf(headers, bytes)).unwrap_err();
            assert!(matches!(error, BootError::NotAKernel(_)), "{headers} headers: {error}");
        }
        let cut = load_into_32_mib(&elf(2, 0)[..100]).unwrap_err();
        assert!(matches!(cut, BootError::NotAKernel(_)));
    }
}
