//! Files of ext2, ext3 and ext4, read only.
//!
//! Written here rather than taken from a library for two reasons. A machine that was killed leaves its
//! newest kernel in the journal, and this replays all that the kernel would: around the ring's end, with
//! revocations and escaped blocks, with and without checksums. And every walk is bounded: trees of blocks
//! must be in order, folders and files have limits, and every byte read counts against a budget.
//! Source: `Documentation/filesystems/ext4` of Linux.

mod blocks;
mod inode;
mod journal;
mod superblock;

use std::io;
use std::rc::Rc;

use crate::bytes::{le16, le32};
use crate::error::ErrorKind;
use crate::window::Window;
use blocks::Blocks;
use inode::{Inode, Kind, Run};
use superblock::{SUPERBLOCK_AT, SUPERBLOCK_BYTES, Superblock};

/// An ext4 file system.
#[derive(Clone)]
pub(crate) struct Files(Rc<Inner>);

struct Inner {
    superblock: Superblock,
    blocks: Blocks,
}

/// A regular file, found.
pub(crate) struct FileHandle {
    files: Files,
    path: String,
    size: u64,
    inode: Inode,
}

/// A regular file, read from wherever it is wanted.
pub struct FileReader {
    files: Files,
    size: u64,
    runs: Vec<Run>,
    at: u64,
}

/// Why files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The file system is broken, or uses what is not supported.
    #[error("broken ext4 file system: {0}")]
    Broken(String),
    /// The file system has features that are not supported.
    #[error("the ext4 file system has features that are not supported: {0:#x}")]
    Unsupported(u32),
    /// The file system is larger than what it lies on.
    #[error("the ext4 file system has {bytes} bytes, what it lies on only {partition}")]
    Truncated {
        /// Its size.
        bytes: u64,
        /// The size of its partition.
        partition: u64,
    },
    /// A file is larger than anything of its kind.
    #[error("{path} has {size} bytes: more than {limit} is refused")]
    TooLarge {
        /// Which file.
        path: String,
        /// Its size.
        size: u64,
        /// The most that is read.
        limit: u64,
    },
    /// The disk cannot be read.
    #[error("cannot read the disk")]
    Io(#[source] io::Error),
}

impl FilesError {
    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Broken(_) | Self::Unsupported(_) | Self::Truncated { .. } => ErrorKind::BrokenFileSystem,
            Self::TooLarge { .. } => ErrorKind::WrongKernel,
            Self::Io(_) => ErrorKind::Io,
        }
    }
}

impl From<io::Error> for FilesError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Broken(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

impl Files {
    /// Reads the superblock and, where the file system was not closed properly, the journal.
    pub(crate) fn open(window: &Window) -> Result<Self, FilesError> {
        let head = window.read_vec(SUPERBLOCK_AT, SUPERBLOCK_BYTES)?;
        let superblock = Superblock::parse(&head, window.size())?;
        let mut blocks = Blocks::new(window.clone(), superblock.block_size, superblock.blocks);
        if !superblock.needs_recovery() {
            return Ok(Self(Rc::new(Inner { superblock, blocks })));
        }
        if superblock.journal_inode == 0 {
            return Err(broken("its journal is on another device"));
        }
        let journal = Inode::read(&blocks, &superblock, superblock.journal_inode)?;
        let runs = journal.runs(&blocks, &superblock)?;
        blocks.replace(journal::replay(&blocks, &runs)?);
        // The superblock is among what a journal changes.
        let mut head = vec![0; SUPERBLOCK_BYTES];
        blocks.read_at(&mut head, SUPERBLOCK_AT)?;
        let superblock = Superblock::parse(&head, window.size())?;
        Ok(Self(Rc::new(Inner { superblock, blocks })))
    }

    /// The regular file at `path`; `None` when there is none.
    pub(crate) fn file(&self, path: &str) -> Result<Option<FileHandle>, FilesError> {
        let found = self.find(path)?.filter(|inode| inode.kind == Kind::File);
        Ok(found.map(|inode| FileHandle {
            files: self.clone(),
            path: path.to_owned(),
            size: inode.size,
            inode,
        }))
    }

    /// Whether a folder is at `path`.
    pub(crate) fn is_folder(&self, path: &str) -> Result<bool, FilesError> {
        Ok(self.find(path)?.is_some_and(|inode| inode.kind == Kind::Folder))
    }

    /// The names in the folder at `path`, at most `limit`; none when there is no such folder.
    pub(crate) fn list(&self, path: &str, limit: usize) -> Result<Vec<String>, FilesError> {
        let mut names = Vec::new();
        if let Some(folder) = self.find(path)?.filter(|inode| inode.kind == Kind::Folder) {
            self.each_entry(&folder, &mut |name, _| {
                names.extend(str::from_utf8(name).ok().map(str::to_owned));
                names.len() < limit
            })?;
        }
        Ok(names)
    }

    /// Follows `path` from the root, through links.
    fn find(&self, path: &str) -> Result<Option<Inode>, FilesError> {
        // What is still to be walked, the next name last; and the folders walked into.
        let mut rest: Vec<Vec<u8>> = names(path.as_bytes());
        let mut folders = vec![self.inode(ROOT_INODE)?];
        let (mut links, mut steps) = (0, 0);
        let Some(mut here) = folders.last().cloned() else { return Ok(None) };
        while let Some(name) = rest.pop() {
            steps += 1;
            if here.kind != Kind::Folder || steps > STEPS_MAX {
                return Ok(None);
            }
            if name == b".." {
                folders.truncate(folders.len().saturating_sub(1).max(1));
                let Some(folder) = folders.last() else { return Ok(None) };
                here = folder.clone();
                continue;
            }
            let Some(number) = self.look_up(&here, &name)? else { return Ok(None) };
            let inode = self.inode(number)?;
            if inode.kind == Kind::Link {
                links += 1;
                if links > LINKS_MAX {
                    return Ok(None);
                }
                let target = self.target(&inode)?;
                if target.starts_with(b"/") {
                    folders.truncate(1);
                }
                rest.extend(names(&target));
                let Some(folder) = folders.last() else { return Ok(None) };
                here = folder.clone();
                continue;
            }
            if inode.kind == Kind::Folder {
                folders.push(inode.clone());
            }
            here = inode;
        }
        Ok(Some(here))
    }

    fn target(&self, link: &Inode) -> Result<Vec<u8>, FilesError> {
        if let Some(target) = link.short_target() {
            return Ok(target.to_vec());
        }
        if link.size > TARGET_BYTES_MAX {
            return Err(broken("a link with an endless target"));
        }
        let mut target = Vec::new();
        self.each_piece(link, link.size, &mut |piece| {
            target.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(target)
    }

    fn look_up(&self, folder: &Inode, wanted: &[u8]) -> Result<Option<u32>, FilesError> {
        let mut found = None;
        self.each_entry(folder, &mut |name, number| {
            if name == wanted {
                found = Some(number);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// Hands over the entries of a folder until told to stop. Hashed folders can be read in a row too:
    /// their index looks like unused entries.
    fn each_entry(&self, folder: &Inode, take: &mut dyn FnMut(&[u8], u32) -> bool) -> Result<(), FilesError> {
        if folder.size > FOLDER_BYTES_MAX {
            return Err(broken(format!("a folder of {} bytes", folder.size)));
        }
        for run in folder.runs(&self.0.blocks, &self.0.superblock)? {
            for block in run.block..run.block + run.count {
                if !entries(&self.0.blocks.read(block)?, take)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Hands over the first `len` bytes of a file, piece by piece.
    fn each_piece(
        &self,
        inode: &Inode,
        len: u64,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), FilesError> {
        let block_size = self.0.blocks.size();
        let mut buffer = vec![0; PIECE_BYTES];
        let mut at = 0;
        let end = Run { first: u64::MAX / block_size, block: 0, count: 0 };
        for run in inode.runs(&self.0.blocks, &self.0.superblock)?.into_iter().chain([end]) {
            let start = (run.first * block_size).min(len);
            while at < start {
                let zeros = piece(&mut buffer, start - at);
                zeros.fill(0);
                take(zeros)?;
                at += zeros.len() as u64;
            }
            let stop = len.min((run.first + run.count).saturating_mul(block_size));
            while at < stop {
                let bytes = piece(&mut buffer, stop - at);
                let place = run.block.saturating_mul(block_size).saturating_add(at - run.first * block_size);
                self.0.blocks.read_at(bytes, place)?;
                take(bytes)?;
                at += bytes.len() as u64;
            }
        }
        Ok(())
    }

    fn inode(&self, number: u32) -> Result<Inode, FilesError> {
        Inode::read(&self.0.blocks, &self.0.superblock, number)
    }
}

impl FileHandle {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Refuses a file of more than `limit` bytes.
    pub(crate) fn check_size(&self, limit: u64) -> Result<(), FilesError> {
        if self.size <= limit {
            return Ok(());
        }
        Err(FilesError::TooLarge { path: self.path.clone(), size: self.size, limit })
    }

    /// The first `len` bytes, or all.
    pub(crate) fn read_head(&self, len: usize) -> Result<Vec<u8>, FilesError> {
        let mut head = Vec::new();
        self.files.each_piece(&self.inode, self.size.min(len as u64), &mut |piece| {
            head.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(head)
    }

    /// The whole file, of at most `limit` bytes.
    pub(crate) fn read(&self, limit: u64) -> Result<Vec<u8>, FilesError> {
        self.check_size(limit)?;
        let mut bytes = Vec::with_capacity(usize::try_from(self.size).unwrap_or_default());
        self.for_each(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// The file, to be read from its beginning on or from elsewhere.
    pub(crate) fn reader(&self) -> Result<FileReader, FilesError> {
        let Inner { blocks, superblock } = &*self.files.0;
        let runs = self.inode.runs(blocks, superblock)?;
        Ok(FileReader { files: self.files.clone(), size: self.size, runs, at: 0 })
    }

    /// Hands over the whole file, piece by piece.
    pub(crate) fn for_each(&self, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), FilesError> {
        self.files.each_piece(&self.inode, self.size, take)
    }
}

impl io::Read for FileReader {
    /// Reads at most to the end of the run, or of the hole, that it is in.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let blocks = &self.files.0.blocks;
        let block = self.at / blocks.size();
        let next = self.runs.partition_point(|run| run.first.saturating_add(run.count) <= block);
        let (stop, place) = match self.runs.get(next) {
            Some(run) if run.first <= block => {
                let within = self.at - run.first * blocks.size();
                let place = run.block.saturating_mul(blocks.size()).saturating_add(within);
                ((run.first + run.count).saturating_mul(blocks.size()), Some(place))
            }
            Some(run) => (run.first.saturating_mul(blocks.size()), None),
            None => (self.size, None),
        };
        let bytes = piece(buffer, self.size.min(stop).saturating_sub(self.at));
        match place {
            Some(place) => blocks.read_at(bytes, place)?,
            None => bytes.fill(0),
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

impl io::Seek for FileReader {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let at = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
            io::SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// The names of a path, the last one first.
fn names(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|&c| c == b'/').filter(|name| !name.is_empty() && *name != b".");
    let mut names: Vec<_> = names.map(<[u8]>::to_vec).collect();
    names.reverse();
    names
}

/// Hands over the entries in one block of a folder; `false` when told to stop.
fn entries(block: &[u8], take: &mut dyn FnMut(&[u8], u32) -> bool) -> Result<bool, FilesError> {
    let mut rest = block;
    while rest.len() >= 8 {
        let number = le32(rest, 0).unwrap_or_default();
        let len = match le16(rest, 4).unwrap_or_default() {
            // The only way to say 65536.
            0 | 0xffff => rest.len(),
            len => len.into(),
        };
        let name_len = rest.get(6).copied().unwrap_or_default();
        if len < 8 || len > rest.len() || len % 4 != 0 {
            return Err(broken("a broken entry in a folder"));
        }
        let (entry, after) = rest.split_at(len);
        let name = entry.get(8..8 + usize::from(name_len));
        if number != 0 {
            let name = name.ok_or_else(|| broken("a broken name in a folder"))?;
            if !name.is_empty() && !take(name, number) {
                return Ok(false);
            }
        }
        rest = after;
    }
    Ok(true)
}

fn piece(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    buffer.split_at_mut(len).0
}

fn broken(what: impl Into<String>) -> FilesError {
    FilesError::Broken(what.into())
}

const ROOT_INODE: u32 = 2;
/// Linux's limit.
const LINKS_MAX: u32 = 40;
const STEPS_MAX: u32 = 1000;
const TARGET_BYTES_MAX: u64 = 4096;
const FOLDER_BYTES_MAX: u64 = 16 << 20;
const PIECE_BYTES: usize = 256 * 1024;
