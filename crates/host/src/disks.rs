//! Disks of a machine: their files, open and locked.
//!
//! Invariants: a file that a machine writes to is locked for it alone, one that it reads is locked against
//! writers, so that machines share an image but never corrupt one. The lock is part of the descriptor that
//! the machine process is handed, so it lasts as long as the machine, and as the requests that the kernel still has
//! to finish for it. What a machine writes to a throw-away overlay goes to a file without a name, which nothing can
//! leave behind.

use std::{
    fs::File,
    io::{self, Seek},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use ec2vmm_image::{DiskError, ErrorKind, Layer, OpenError};
use ec2vmm_vmm_api::{
    FailureKind,
    config::{Format, RateLimit},
};
use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};

use crate::{Explained, kind_of_io};

/// A disk that is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// A file or a block device.
    pub path: PathBuf,
    /// How the file holds the disk; else the name tells: qcow2 if it ends in `.qcow2`, raw if not.
    pub format: Option<Format>,
    /// What becomes of what the guest writes.
    pub writes: Writes,
    /// At most [`SERIAL_BYTES_MAX`].
    pub serial: String,
    /// See [`ec2vmm_vmm_api::config::Disk::queues`].
    pub queues: Option<u16>,
    /// See [`ec2vmm_vmm_api::config::Disk::rate_limit`].
    pub rate_limit: RateLimit,
}

/// What becomes of what a guest writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Writes {
    /// The guest cannot write.
    Refused,
    /// The guest can write, and it is gone when the machine ends.
    Discarded,
    /// The file changes.
    Kept,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    /// The top file first, beneath it what it builds on.
    pub layers: Vec<OpenLayer>,
    /// The guest cannot write.
    pub read_only: bool,
    /// The top file is gone when the machine ends.
    pub scratch: bool,
    /// What the guest reads as the disk's serial number.
    pub serial: String,
    /// See [`ec2vmm_vmm_api::config::Disk::queues`].
    pub queues: Option<u16>,
    /// See [`ec2vmm_vmm_api::config::Disk::rate_limit`].
    pub rate_limit: RateLimit,
}

/// One open file of a disk.
#[derive(Debug)]
pub struct OpenLayer {
    /// The file, locked.
    pub file: File,
    /// How it holds the disk.
    pub format: Format,
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file, or one beneath it, cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The files are no disk.
    #[error("{}", path.display())]
    NotADisk {
        /// The file asked for.
        path: PathBuf,
        /// Why.
        source: DiskError,
    },
    /// A qcow2 file that nobody called one.
    #[error("{} starts like a qcow2 file, but its name does not say so", path.display())]
    FormatNotSaid {
        /// The file asked for.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error(
        "disk {} is in use by {}",
        path.display(),
        holder.as_ref().map_or_else(|| "another machine".to_owned(), Holder::to_string)
    )]
    InUse {
        /// The file asked for.
        path: PathBuf,
        /// Who.
        holder: Option<Holder>,
        /// It was wanted for writing.
        to_write: bool,
    },
    /// There is no place for what the guest writes.
    #[error("cannot make a temporary file in {}", folder.display())]
    Scratch {
        /// Where it should be.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host's system failed.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file asked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Who holds a lock: the process that took it.
#[derive(Debug, thiserror::Error)]
#[error("process {pid} ({name})")]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl Explained for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Open(error) => failure_kind(error.kind()),
            Self::NotADisk { source, .. } => failure_kind(source.kind()),
            Self::FormatNotSaid { .. } => FailureKind::Usage,
            Self::InUse { .. } => FailureKind::DiskInUse,
            Self::Scratch { .. } => FailureKind::Other,
            Self::Io { source, .. } => kind_of_io(source, FailureKind::NoSuchImage),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Open(OpenError::NotFound(_)) => {
                Some("check the name; `scripts/build-image debian-12` makes an image to start with".into())
            }
            Self::Open(error) => error.hint(),
            Self::NotADisk { source, .. } => source.hint(),
            Self::FormatNotSaid { .. } => {
                Some("say which it is: `--format qcow2`, or `--format raw` for the bytes as they are".into())
            }
            Self::InUse { to_write: true, .. } => {
                Some("end the other machine, or work on a copy of the file".into())
            }
            Self::InUse { to_write: false, .. } => {
                Some("it is being written to: end that machine first".into())
            }
            Self::Scratch { .. } => Some("name a folder with room in the variable TMPDIR".into()),
            Self::Io { .. } => None,
        }
    }
}

/// The exit status for what is wrong with an image.
pub fn failure_kind(kind: ErrorKind) -> FailureKind {
    match kind {
        ErrorKind::NotFound => FailureKind::NoSuchImage,
        ErrorKind::Permission => FailureKind::Permission,
        ErrorKind::NotADisk => FailureKind::NotADisk,
        ErrorKind::BrokenQcow2 => FailureKind::BrokenQcow2,
        ErrorKind::BrokenPartitionTable => FailureKind::BrokenPartitionTable,
        ErrorKind::BrokenFileSystem => FailureKind::BrokenFileSystem,
        ErrorKind::NoKernel => FailureKind::NoKernel,
        ErrorKind::WrongKernel => FailureKind::WrongKernel,
        ErrorKind::Io => FailureKind::Other,
    }
}

impl Disk {
    /// Whether what the guest writes to it takes memory: its file is on a file system that has nothing else.
    pub fn is_in_memory(&self) -> bool {
        let top = self.layers.first().filter(|_| !self.read_only);
        // A file that tells nothing of itself is an ordinary one.
        let kind = top.and_then(|layer| rustix::fs::fstatfs(&layer.file).ok()).map(|file| file.f_type);
        kind.is_some_and(|kind| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind))
    }
}

/// Opens and locks a disk. What is thrown away is written to a file without a name in `scratch`.
///
/// # Errors
/// [`Error`].
pub fn open(wanted: &Wanted, scratch: &Path) -> Result<Disk, Error> {
    let path = &wanted.path;
    let keeps = wanted.writes == Writes::Kept;
    let mut layers = open_locked(path, wanted.format, keeps)?;
    if wanted.writes == Writes::Discarded {
        let overlay = overlay(path, &layers, scratch)?;
        layers.insert(0, overlay);
    }
    let layers =
        layers.into_iter().map(|Layer { file, format }| OpenLayer { file, format: spell(format) }).collect();
    Ok(Disk {
        layers,
        read_only: wanted.writes == Writes::Refused,
        scratch: wanted.writes == Writes::Discarded,
        serial: wanted.serial.clone(),
        queues: wanted.queues,
        rate_limit: wanted.rate_limit,
    })
}

/// Opens a disk for looking at it: locked against writers, because what is being written makes no sense.
///
/// # Errors
/// [`Error`].
pub fn open_to_inspect(path: &Path, format: Option<Format>) -> Result<ec2vmm_image::Disk, Error> {
    let layers = open_locked(path, format, false)?;
    ec2vmm_image::Disk::open(layers, false)
        .map_err(|source| Error::NotADisk { path: path.to_owned(), source })
}

fn open_locked(path: &Path, format: Option<Format>, write: bool) -> Result<Vec<Layer>, Error> {
    let layers = ec2vmm_image::open_chain(path, format.map(understand), write)?;
    let hides_qcow2 =
        |layer: &Layer| layer.format == ec2vmm_image::Format::Raw && starts_with_magic(&layer.file);
    if format.is_none() && layers.first().is_some_and(|(_, layer)| hides_qcow2(layer)) {
        return Err(Error::FormatNotSaid { path: path.to_owned() });
    }
    for (index, (path, layer)) in layers.iter().enumerate() {
        lock(path, &layer.file, write && index == 0)?;
    }
    Ok(layers.into_iter().map(|(_, layer)| layer).collect())
}

/// An empty disk that lasts as long as it is open.
///
/// # Errors
/// [`Error::Scratch`]: there is no place for it in `folder`.
pub fn fleeting(folder: &Path, size_bytes: u64, serial: String) -> Result<Disk, Error> {
    let failed = |source| Error::Scratch { folder: folder.to_owned(), source };
    let file = unnamed_file(folder).map_err(failed)?;
    file.set_len(size_bytes).map_err(failed)?;
    let layers = vec![OpenLayer { file, format: Format::Raw }];
    Ok(Disk {
        layers,
        read_only: false,
        scratch: true,
        serial,
        queues: None,
        rate_limit: RateLimit::default(),
    })
}

fn lock(path: &Path, file: &File, to_write: bool) -> Result<(), Error> {
    let operation = match to_write {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    let in_use = |holder| Error::InUse { path: path.to_owned(), holder, to_write };
    let locked = once_free(LEFT_BEHIND_MAX, || match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(Some(())),
        // Who is there yet is not waited for.
        Err(Errno::WOULDBLOCK) => holder(file).map_or(Ok(None), |holder| Err(in_use(Some(holder)))),
        Err(errno) => Err(Error::Io { path: path.to_owned(), source: errno.into() }),
    });
    locked?.ok_or_else(|| in_use(None))
}

/// Tries until it works, or `patience` is over. The kernel takes down the queues of a machine that has ended
/// (io_uring) a moment after the process is gone, and with them its last hold on a disk.
pub(crate) fn once_free<T, E>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let deadline = Instant::now() + patience;
    loop {
        let done = attempt()?;
        if done.is_some() || Instant::now() >= deadline {
            return Ok(done);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Who holds a lock on a file, as far as the kernel tells: nobody if that process is gone, or of another namespace.
fn holder(file: &File) -> Option<Holder> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = find_holder(&locks, &file)?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(Holder { pid, name: name.trim_end().to_owned() })
}

/// Reads lines such as `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`.
fn find_holder(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (kind, pid) = (words.next()?, words.nth(2)?);
        (kind == "FLOCK" && words.next()? == file).then(|| pid.parse().ok())?
    })
}

/// An empty qcow2 file on top of `layers` that lasts as long as it is open.
fn overlay(path: &Path, layers: &[Layer], scratch: &Path) -> Result<Layer, Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let copies: io::Result<Vec<Layer>> = layers
        .iter()
        .map(|layer| Ok(Layer { file: layer.file.try_clone()?, format: layer.format }))
        .collect();
    let base = ec2vmm_image::Disk::open(copies.map_err(failed)?, false)
        .map_err(|source| Error::NotADisk { path: path.to_owned(), source })?;
    let scratched = |source| Error::Scratch { folder: scratch.to_owned(), source };
    let mut file = unnamed_file(scratch).map_err(scratched)?;
    ec2vmm_image::create_overlay(file.try_clone().map_err(scratched)?, base.size()).map_err(scratched)?;
    file.rewind().map_err(scratched)?;
    Ok(Layer { file, format: ec2vmm_image::Format::Qcow2 })
}

fn unnamed_file(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::EXCL;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // File systems that have no O_TMPFILE, and kernels that take it for O_DIRECTORY.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named_and_removed(folder),
        Err(errno) => Err(errno.into()),
    }
}

fn named_and_removed(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!("ec2vmm-{}", uuid::Uuid::new_v4()));
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
    std::fs::remove_file(&path)?;
    Ok(file.into())
}

fn starts_with_magic(file: &File) -> bool {
    let mut start = [0; QCOW2_MAGIC.len()];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut start, 0).is_ok() && start == QCOW2_MAGIC
}

fn understand(format: Format) -> ec2vmm_image::Format {
    match format {
        Format::Raw => ec2vmm_image::Format::Raw,
        Format::Qcow2 => ec2vmm_image::Format::Qcow2,
    }
}

fn spell(format: ec2vmm_image::Format) -> Format {
    match format {
        ec2vmm_image::Format::Raw => Format::Raw,
        ec2vmm_image::Format::Qcow2 => Format::Qcow2,
    }
}

/// What a virtio block device can say (VIRTIO 1.2, 5.2.6.1).
pub const SERIAL_BYTES_MAX: usize = 20;

/// How long a lock may outlive whoever took it.
const LEFT_BEHIND_MAX: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// File systems that are memory and nothing else (statfs(2)).
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
const RAMFS_MAGIC: rustix::fs::FsWord = 0x8584_58f6;

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        path::{Path, PathBuf},
        process::Command,
        thread,
    };

    use ec2vmm_vmm_api::{
        FailureKind,
        config::{Format, RateLimit},
    };

    use super::{Disk, Error, Wanted, Writes, find_holder, named_and_removed, open};
    use crate::Explained;

    #[test]
    fn machines_share_what_they_only_read() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        let readers = [Writes::Refused, Writes::Discarded, Writes::Discarded];
        let readers = readers.map(|writes| attempt(&image, writes).unwrap());
        let error = attempt(&image, Writes::Kept).unwrap_err();
        assert_eq!(error.kind(), FailureKind::DiskInUse);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(readers);
        let writer = attempt(&image, Writes::Kept).unwrap();
        for writes in [Writes::Refused, Writes::Discarded, Writes::Kept] {
            assert_eq!(attempt(&image, writes).unwrap_err().kind(), FailureKind::DiskInUse);
        }
        drop(writer);
        attempt(&image, Writes::Kept).unwrap();
    }

    /// A file that is locked by a process which is no more.
    fn left_behind(image: &Path) -> File {
        let file = File::open(image).unwrap();
        let locked =
            Command::new("flock").args(["--exclusive", "0"]).stdin(file.try_clone().unwrap()).status();
        assert!(locked.unwrap().success());
        file
    }

    #[test]
    fn what_a_machine_that_has_ended_still_holds_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        let held = left_behind(&image);
        let open_files = {
            let image = image.clone();
            move || {
                let all = std::fs::read_dir("/proc/self/fd").unwrap();
                all.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|it| it == image))
                    .count()
            }
        };
        let freed = thread::spawn(move || {
            while open_files() < 2 {}
            drop(held);
        });
        attempt(&image, Writes::Kept).unwrap();
        freed.join().unwrap();
    }

    #[test]
    fn but_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        let _held = left_behind(&image);
        let error = attempt(&image, Writes::Refused).unwrap_err();
        assert!(error.to_string().ends_with("is in use by another machine"), "{error}");
    }

    #[test]
    fn an_overlay_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        let disk = attempt(&image, Writes::Discarded).unwrap();
        let formats: Vec<Format> = disk.layers.iter().map(|layer| layer.format).collect();
        assert_eq!(formats, [Format::Qcow2, Format::Raw]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(!disk.read_only);
        named_and_removed(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_disk_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let kind = |path: &Path| attempt(path, Writes::Refused).unwrap_err().kind();
        assert_eq!(kind(&folder.path().join("none")), FailureKind::NoSuchImage);
        assert_eq!(kind(folder.path()), FailureKind::NotADisk);
        assert_eq!(kind(Path::new("/dev/null")), FailureKind::NotADisk);
        let fifo = folder.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(kind(&fifo), FailureKind::NotADisk);
        let cloud = folder.path().join("cloud.img");
        std::fs::write(&cloud, [b"QFI\xfb".as_slice(), &[0; 2044]].concat()).unwrap();
        assert!(matches!(attempt(&cloud, Writes::Refused), Err(Error::FormatNotSaid { .. })));
        let broken = folder.path().join("broken.qcow2");
        std::fs::write(&broken, [b"QFI\xfb".as_slice(), &[0; 2044]].concat()).unwrap();
        assert_eq!(kind(&broken), FailureKind::BrokenQcow2);
    }

    #[test]
    fn scratch_must_exist() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        let wanted = wanted(image, Writes::Discarded);
        let error = open(&wanted, &folder.path().join("none")).unwrap_err();
        assert!(matches!(error, Error::Scratch { .. }), "{error}");
    }

    #[test]
    fn lock_lines() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 08:01:12 0 EOF\n\
                     1: -> FLOCK  ADVISORY  READ 9 08:01:12 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 8 08:01:12 0 EOF\n";
        assert_eq!(find_holder(locks, "08:01:12"), Some(8));
        assert_eq!(find_holder(locks, "08:01:1"), None);
        assert_eq!(find_holder("garbage", "08:01:1"), None);
    }

    fn attempt(path: &Path, writes: Writes) -> Result<Disk, Error> {
        let wanted = wanted(path.to_owned(), writes);
        open(&wanted, path.parent().filter(|folder| folder.is_dir()).unwrap_or(Path::new("/tmp")))
    }

    fn wanted(path: PathBuf, writes: Writes) -> Wanted {
        let serial = "root".into();
        Wanted { path, format: None, writes, serial, queues: None, rate_limit: RateLimit::default() }
    }

    fn image(folder: &Path) -> PathBuf {
        let path = folder.join("disk.raw");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    #[test]
    fn what_is_written_to_memory_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image.raw");
        std::fs::write(&image, [0; 4096]).unwrap();
        let memory: std::fs::File =
            rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into();
        let disk = |file, read_only| Disk {
            layers: vec![super::OpenLayer { file, format: Format::Raw }],
            read_only,
            scratch: false,
            serial: "disk".into(),
            queues: None,
            rate_limit: RateLimit::default(),
        };
        // Files without a name are on a file system like that of /dev/shm.
        assert!(disk(memory.try_clone().unwrap(), false).is_in_memory());
        assert!(!disk(memory, true).is_in_memory());
        let on_disk = rustix::fs::statfs(folder.path()).unwrap().f_type != super::TMPFS_MAGIC;
        assert_eq!(disk(std::fs::File::open(&image).unwrap(), false).is_in_memory(), !on_disk);
    }
}
