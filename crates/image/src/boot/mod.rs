//! The kernel, initrd and command line that a disk's own boot loader would start.
//!
//! Looked for on every ext4 file system, in the order of the partitions; the first find is taken:
//!
//! 1. `grub.cfg` in `/boot/grub`, `/boot/grub2`, or `/grub`, `/grub2` of a boot partition. It is run as
//!    GRUB runs it, saved choices in `grubenv` included. A one-time choice (`grub-reboot`) is honoured
//!    but not used up, because nothing is written.
//! 2. Boot Loader Specification entries in `/loader/entries` or `/boot/loader/entries`.
//! 3. The links `/vmlinuz` and `/initrd.img`, also in `/boot`, which Debian keeps on the newest kernel;
//!    the command line is then `root=UUID=… ro console=ttyS0` with that file system's UUID.
//!
//! There is no guessing beyond that: a kernel that nothing names is not booted.

mod grub;
mod kernel;
mod loader_spec;
mod version;
pub(crate) mod volumes;

use std::io;

use serde::Serialize;

use crate::disk::Disk;
use crate::error::ErrorKind;
use crate::ext4::{FileHandle, FileReader, FilesError};
use crate::partition::{self, TableError};
use grub::{Place, Places};
use volumes::{Volume, Volumes};

pub use grub::GrubError;
pub use kernel::{Architecture, Kernel, KernelError, KernelFormat};

/// What is to be booted. Its files are read from the disk when asked for.
pub struct Boot {
    /// The entry that was chosen.
    pub entry: Entry,
    /// What kernel it is.
    pub kernel: Kernel,
    kernel_file: FileHandle,
    initrd_files: Vec<FileHandle>,
}

/// A boot entry.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Entry {
    /// Its title in the menu.
    pub title: String,
    /// What kind of configuration named it.
    pub loader: Loader,
    /// The file that named it, such as `(hd0,gpt1)/boot/grub/grub.cfg`.
    pub source: String,
    /// The kernel file, such as `(hd0,gpt1)/boot/vmlinuz-6.1.0-18-cloud-amd64`.
    pub kernel: String,
    /// The files that make the initial RAM disk, in order.
    pub initrds: Vec<String>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// What names boot entries.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loader {
    /// GRUB 2's configuration file.
    Grub,
    /// Boot Loader Specification entries.
    LoaderSpec,
    /// The links that Debian keeps on the newest kernel.
    Links,
}

/// Why a disk cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The disk cannot be read.
    #[error("cannot read the disk")]
    Io(#[source] io::Error),
    /// The partition table is broken, or there is nothing on the disk.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A file system is broken, and no other has a boot entry.
    #[error("cannot read {volume}")]
    Filesystem {
        /// Which partition, or the disk.
        volume: String,
        /// What is wrong.
        #[source]
        source: FilesError,
    },
    /// A file cannot be read.
    #[error("cannot read {place}")]
    File {
        /// Which file.
        place: String,
        /// What is wrong.
        #[source]
        source: FilesError,
    },
    /// Nothing on the disk says what to boot.
    #[error("no boot entry found; looked {}", .looked.join("; "))]
    NoEntry {
        /// Where it was looked for, one phrase for each partition.
        looked: Vec<String>,
    },
    /// A GRUB configuration chooses nothing.
    #[error("cannot boot what {place} says")]
    Grub {
        /// Which configuration file.
        place: String,
        /// What is wrong with it.
        #[source]
        source: GrubError,
    },
    /// The entry names a file that is not there.
    #[error("{source_file} boots {missing}, which is not there")]
    Missing {
        /// The file that the entry names.
        missing: String,
        /// What names it.
        source_file: String,
    },
    /// The kernel cannot be started here.
    #[error("cannot start {place}")]
    Kernel {
        /// Which kernel file.
        place: String,
        /// What is wrong with it.
        #[source]
        source: KernelError,
    },
}

impl BootError {
    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io(_) => ErrorKind::Io,
            Self::Table(error) => error.kind(),
            Self::Filesystem { source, .. }
            | Self::File { source, .. }
            | Self::Grub { source: GrubError::Files(source), .. } => source.kind(),
            Self::NoEntry { .. } | Self::Grub { .. } | Self::Missing { .. } => ErrorKind::NoKernel,
            Self::Kernel { .. } => ErrorKind::WrongKernel,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Table(error) => return error.hint(),
            Self::NoEntry { .. } | Self::Missing { .. } | Self::Grub { .. } => {
                "name a kernel with `--kernel`, `--initrd` and `--append`"
            }
            Self::Kernel { source: KernelError::WrongArchitecture(_), .. } => {
                "use the image for x86-64 (amd64)"
            }
            Self::Filesystem { source, .. } | Self::File { source, .. }
                if source.kind() == ErrorKind::BrokenFileSystem =>
            {
                "repair it with `e2fsck`, or fetch the file again"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// Finds what `disk` boots.
///
/// # Errors
/// Nothing on the disk says what to boot, or what it says cannot be read or started here.
pub fn find_boot(disk: &Disk) -> Result<Boot, BootError> {
    let table = partition::read_table(disk)?;
    let volumes = Volumes::open(disk, &table).map_err(BootError::Io)?;
    find_in(volumes)
}

/// As [`find_boot`], on volumes that are open.
pub(crate) fn find_in(volumes: Volumes) -> Result<Boot, BootError> {
    let finders = [find_grub, find_loader_spec, find_links];
    for find in finders {
        if let Some(found) = find(&volumes)? {
            return open(&volumes, found);
        }
    }
    let looked = volumes.iter().map(looked_where).collect();
    match volumes.take_broken() {
        Some((volume, source)) => Err(BootError::Filesystem { volume, source }),
        None => Err(BootError::NoEntry { looked }),
    }
}

/// An entry whose files are not yet looked for.
struct Found {
    title: String,
    loader: Loader,
    source: String,
    kernel: Place,
    initrds: Vec<Place>,
    cmdline: String,
}

fn find_grub(volumes: &Volumes) -> Result<Option<Found>, BootError> {
    for (volume, _) in volumes.readable() {
        for folder in GRUB_FOLDERS {
            let at = |path: &str| Place { device: volume.device().to_owned(), path: path.to_owned() };
            let config = at(&format!("{folder}/grub.cfg"));
            let Some(text) = read(volumes, &config, grub::CONFIG_BYTES_MAX)? else { continue };
            let text = String::from_utf8_lossy(&text);
            let source = config.to_string();
            let choice = grub::choose(volumes, &at(folder), &text)
                .map_err(|error| BootError::Grub { place: source.clone(), source: error })?;
            let grub::Linux { kernel, cmdline, initrds } = choice.linux;
            let initrds = initrds.into_iter().map(|initrd| initrd.0).collect();
            return Ok(Some(Found {
                title: choice.title,
                loader: Loader::Grub,
                source,
                kernel,
                initrds,
                cmdline,
            }));
        }
    }
    Ok(None)
}

fn find_loader_spec(volumes: &Volumes) -> Result<Option<Found>, BootError> {
    for (volume, _) in volumes.readable() {
        for path in loader_spec::FOLDERS {
            let at = |path: String| Place { device: volume.device().to_owned(), path };
            let folder = at(path.to_owned());
            let entries = loader_spec::read_folder(volumes, &folder)
                .map_err(|source| BootError::File { place: folder.to_string(), source })?;
            let config = at(path.replace("/entries", "/loader.conf"));
            let config = read(volumes, &config, grub::CONFIG_BYTES_MAX)?;
            let config = config.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let Some(entry) = loader_spec::default_entry(&entries, config.as_deref()) else { continue };
            return Ok(Some(Found {
                title: entry.title(),
                loader: Loader::LoaderSpec,
                source: format!("{folder}/{}.conf", entry.id),
                kernel: at(rooted(entry.get("linux").unwrap_or_default())),
                initrds: entry
                    .all("initrd")
                    .flat_map(str::split_whitespace)
                    .map(|path| at(rooted(path)))
                    .collect(),
                cmdline: entry.all("options").collect::<Vec<_>>().join(" "),
            }));
        }
    }
    Ok(None)
}

fn find_links(volumes: &Volumes) -> Result<Option<Found>, BootError> {
    for (volume, _) in volumes.readable() {
        let uuid = volume.filesystem.as_ref().and_then(|found| found.uuid.as_deref());
        for folder in ["", "/boot"] {
            let at =
                |name: &str| Place { device: volume.device().to_owned(), path: format!("{folder}/{name}") };
            let (kernel, initrd) = (at("vmlinuz"), at("initrd.img"));
            let exists = |place: &Place| {
                let file = volumes.file(place);
                file.map(|file| file.is_some())
                    .map_err(|source| BootError::File { place: place.to_string(), source })
            };
            let Some(uuid) = uuid else { continue };
            if !exists(&kernel)? || !exists(&initrd)? {
                continue;
            }
            return Ok(Some(Found {
                title: "newest kernel".to_owned(),
                loader: Loader::Links,
                source: kernel.to_string(),
                kernel,
                initrds: vec![initrd],
                cmdline: format!("root=UUID={uuid} ro console=ttyS0"),
            }));
        }
    }
    Ok(None)
}

fn open(volumes: &Volumes, found: Found) -> Result<Boot, BootError> {
    let file = |place: &Place| {
        let opened = volumes.file(place);
        opened.map_err(|source| BootError::File { place: place.to_string(), source })?.ok_or_else(|| {
            BootError::Missing { missing: place.to_string(), source_file: found.source.clone() }
        })
    };
    let place = found.kernel.to_string();
    let kernel_file = file(&found.kernel)?;
    let initrd_files = found.initrds.iter().map(file).collect::<Result<Vec<_>, _>>()?;
    let broken = |source| BootError::File { place: place.clone(), source };
    kernel_file.check_size(KERNEL_BYTES_MAX).map_err(broken)?;
    let mut left = INITRD_BYTES_MAX;
    for (file, place) in initrd_files.iter().zip(&found.initrds) {
        file.check_size(left).map_err(|source| BootError::File { place: place.to_string(), source })?;
        left -= file.size();
    }
    let head = kernel_file.read_head(Kernel::HEAD_BYTES).map_err(broken)?;
    let kernel =
        Kernel::identify(&head).map_err(|source| BootError::Kernel { place: place.clone(), source })?;
    let entry = Entry {
        title: found.title,
        loader: found.loader,
        source: found.source,
        kernel: place,
        initrds: found.initrds.iter().map(Place::to_string).collect(),
        cmdline: found.cmdline,
    };
    Ok(Boot { entry, kernel, kernel_file, initrd_files })
}

fn read(volumes: &Volumes, place: &Place, limit: u64) -> Result<Option<Vec<u8>>, BootError> {
    volumes.read(place, limit).map_err(|source| BootError::File { place: place.to_string(), source })
}

fn rooted(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

fn looked_where(volume: &Volume) -> String {
    match (&volume.filesystem, volume.fault()) {
        (Some(found), None) if found.kind == crate::filesystem::FilesystemKind::Ext4 => {
            let folders = GRUB_FOLDERS.join(", ");
            format!("on {volume} in {folders}, {}, for /vmlinuz", loader_spec::FOLDERS.join(", "))
        }
        _ => format!("not on {volume}: only ext4 can be read"),
    }
}

impl Boot {
    /// The kernel file, of at most 128 MiB.
    ///
    /// # Errors
    /// Its place on the disk cannot be read.
    pub fn kernel(&self) -> Result<FileReader, BootError> {
        let reader = self.kernel_file.reader();
        reader.map_err(|source| BootError::File { place: self.entry.kernel.clone(), source })
    }

    /// Size of the initial RAM disk in bytes: at most 512 MiB, 0 if there is none.
    pub fn initrd_size(&self) -> u64 {
        self.initrd_files.iter().map(|file| file.size().next_multiple_of(INITRD_ALIGN)).sum()
    }

    /// Hands the initial RAM disk to `take`, piece by piece, [`Boot::initrd_size`] bytes in all. Several
    /// files follow one another, each filled up with zeros to four bytes as GRUB does it.
    ///
    /// # Errors
    /// A file cannot be read, or `take` failed.
    pub fn read_initrd(&self, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), BootError> {
        for (file, place) in self.initrd_files.iter().zip(&self.entry.initrds) {
            let failed = |source| BootError::File { place: place.clone(), source };
            file.for_each(take).map_err(failed)?;
            let fill = file.size().next_multiple_of(INITRD_ALIGN) - file.size();
            for _ in 0..fill {
                take(&[0]).map_err(BootError::Io)?;
            }
        }
        Ok(())
    }
}

/// Runs a GRUB configuration on a disk in memory and returns what it boots, for fuzzing.
///
/// # Errors
/// The configuration chooses nothing.
#[cfg(fuzzing)]
pub fn fuzz_grub(text: &str) -> Result<String, GrubError> {
    let disk = grub::memory::Memory::default()
        .device("hd0,gpt1", "11111111-2222-3333-4444-555555555555", "rootfs")
        .device("hd0,gpt2", "", "")
        .file("(hd0,gpt1)/boot/grub/grubenv", "# GRUB Environment Block\nsaved_entry=1>0\n####")
        .file("(hd0,gpt1)/boot/grub/custom.cfg", text)
        .file("(hd0,gpt1)/boot/loader/entries/a.conf", "title A\nlinux /vmlinuz\noptions $kernelopts ro\n")
        .file("(hd0,gpt1)/boot/loader/entries/b.conf", text);
    let folder = Place { device: "hd0,gpt1".to_owned(), path: "/boot/grub".to_owned() };
    grub::choose(&disk, &folder, text).map(|choice| choice.linux.cmdline)
}

const GRUB_FOLDERS: [&str; 4] = ["/boot/grub", "/boot/grub2", "/grub", "/grub2"];
const KERNEL_BYTES_MAX: u64 = 128 << 20;
const INITRD_BYTES_MAX: u64 = 512 << 20;
const INITRD_ALIGN: u64 = 4;
