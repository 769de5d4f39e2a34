//! Opens a snapshot, and says whether the machine that is to be can go on from it.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use ec2vmm_devices::{Memory, pci, state::BadState};
use ec2vmm_snapshot::{MemoryFileError, Tail, check_chain, read_tail};
use ec2vmm_vmm_api::{FailureKind, MachineConfig, config::Clock};

use super::{
    DiskShape, Document, NetShape, Shape,
    file::{self, FileError},
    pager::{self, Pager},
    stamp,
    working_set::{self, Whose, WorkingSetError},
};
use crate::{
    error::MachineError,
    mailbox::Sender,
    memory::{self, MemoryError},
    report::Report,
    slots::Slots,
    userfault::Userfault,
    x86_64::features::CpuMismatch,
};

/// A snapshot that fits the machine, as far as can be told without KVM.
pub struct Snapshot {
    pub(super) document: Document,
    pub(super) clock: Clock,
    pub(super) track: bool,
    /// The full one first. A pager takes them.
    memory: Vec<(File, Tail)>,
}

/// What a pager is made of.
pub struct PagerParts {
    /// It does the work.
    pub userfault: Userfault,
    /// A working set to bring ahead.
    pub prefetch: Option<File>,
    /// Where to write which pages are touched.
    pub record: Option<File>,
}

/// Why a machine cannot go on from a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The memory cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryFileError),
    /// The working set cannot be used.
    #[error(transparent)]
    WorkingSet(#[from] WorkingSetError),
    /// Another machine than the one that was saved.
    #[error("the snapshot is of another machine: {0}")]
    Shape(String),
    /// A disk is not as the guest has left it.
    #[error("disk {index} (`{serial}`) has changed since the snapshot: {difference}")]
    Disk {
        /// Which, from 0.
        index: usize,
        /// Its serial number.
        serial: String,
        /// What is different.
        difference: String,
    },
    /// Another processor than the guest knows.
    #[error(transparent)]
    Cpu(#[from] CpuMismatch),
    /// A device cannot be as it was.
    #[error(transparent)]
    Device(#[from] pci::bus::RestoreError),
    /// Something beside PCI cannot be as it was.
    #[error("the machine's state makes no sense: {0}")]
    State(#[from] BadState),
}

impl RestoreError {
    /// For the exit status.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::File(FileError::Format(_))
            | Self::Memory(MemoryFileError::Format { .. })
            | Self::WorkingSet(WorkingSetError::Format(_)) => FailureKind::SnapshotVersion,
            Self::File(_) | Self::Memory(_) | Self::WorkingSet(_) | Self::State(_) => {
                FailureKind::BrokenSnapshot
            }
            Self::Shape(_) | Self::Device(_) => FailureKind::SnapshotMachine,
            Self::Disk { .. } => FailureKind::SnapshotDisk,
            Self::Cpu(_) => FailureKind::SnapshotCpu,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::File(FileError::Format(_))
            | Self::Memory(MemoryFileError::Format { .. })
            | Self::WorkingSet(WorkingSetError::Format(_)) => {
                "a later ec2vmm wrote it: restore with that one"
            }
            Self::Memory(MemoryFileError::Shortened { .. }) => {
                "a snapshot's files must stay as they are while machines have been restored from them"
            }
            Self::WorkingSet(_) => {
                "record it anew from this very snapshot, to the end of that machine; or do without it"
            }
            Self::Memory(MemoryFileError::Chain(_)) => {
                "give the memory file of the full snapshot, then each difference up to this state, in order"
            }
            Self::File(_) | Self::Memory(_) => "take the file from where it was copied from",
            Self::State(_) => return None,
            Self::Shape(_) => "give the machine what it had when the snapshot was taken",
            Self::Device(_) => {
                "a device that the guest uses must offer here what it offered there: a tap its offloads, say"
            }
            Self::Disk { .. } => {
                "restore with the disk as it was when the snapshot was taken; a copy that keeps times \
                 (cp -p) will do"
            }
            Self::Cpu(_) => "restore on a host with the same or a later processor of the same maker",
        };
        Some(hint.into())
    }
}

impl Snapshot {
    /// Reads the state and the tails of the memory files, and compares them with what there is.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn open(
        state: &File,
        memory: Vec<File>,
        config: &MachineConfig,
        clock: Clock,
        track: bool,
    ) -> Result<Self, RestoreError> {
        let document = file::read(&mut BufReader::new(FromStart { file: state, at: 0 }))?;
        check_size(&document, config)?;
        let ram_bytes = config.memory_mib << 20;
        let memory: Vec<_> = memory
            .into_iter()
            .enumerate()
            .map(|(index, file)| read_tail(&file, index, ram_bytes).map(|tail| (file, tail)))
            .collect::<Result<_, _>>()?;
        check_chain(document.id, memory.iter().map(|(_, tail)| tail))?;
        Ok(Self { document, clock, track, memory })
    }

    /// Compares the devices with those that the guest knows.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn check(&self, config: &MachineConfig, slots: &Slots) -> Result<(), RestoreError> {
        let now = Shape::new(config, slots).map_err(FileError::Read)?;
        check_devices(&self.document.shape, &now)
    }

    /// Has a pager bring the memory in: pages come when they are touched, and those of a working set ahead.
    ///
    /// # Errors
    /// The host refused, or the working set cannot be used.
    pub(crate) fn page_memory(
        &mut self,
        mib: u64,
        parts: PagerParts,
        news: Sender,
        report: Report,
    ) -> Result<(Arc<Memory>, Pager), MachineError> {
        let PagerParts { userfault, prefetch, record } = parts;
        let whose = Whose { id: self.document.id, ram_bytes: mib << 20 };
        let read = |file: File| working_set::read(&file, whose);
        let ahead = prefetch.map(read).transpose().map_err(RestoreError::WorkingSet)?.unwrap_or_default();
        let memory = memory::map(mib)?;
        let files = std::mem::take(&mut self.memory);
        let record = record.map(|file| (file, whose));
        let parts = pager::Parts { userfault, files, ahead, record };
        let pager = Pager::start(Arc::clone(&memory), parts, news, report)?;
        Ok((memory, pager))
    }

    /// Maps the memory: pages come when they are touched, and those that nobody writes to are shared with
    /// all others that have mapped the file.
    ///
    /// # Errors
    /// The host refused, or a file of differences cannot be read.
    pub fn map_memory(&self, mib: u64) -> Result<Arc<Memory>, MemoryError> {
        let Some(((base, _), differences)) = self.memory.split_first() else { return memory::map(mib) };
        let memory = memory::map_file(mib, base)?;
        for (file, tail) in differences {
            memory::overlay(&memory, file, tail.pages.runs())?;
        }
        Ok(memory)
    }
}

fn check_size(document: &Document, config: &MachineConfig) -> Result<(), RestoreError> {
    let then = &document.shape;
    let counts = [
        ("vCPUs", u64::from(then.cpus), u64::from(config.cpus)),
        ("vCPUs", document.vcpus.len() as u64, u64::from(config.cpus)),
        ("MiB of memory", then.memory_mib, config.memory_mib),
    ];
    counts.into_iter().try_for_each(|(what, then, now)| check_count(what, then, now))
}

fn check_count(what: &str, then: u64, now: u64) -> Result<(), RestoreError> {
    if then == now {
        return Ok(());
    }
    Err(RestoreError::Shape(format!("it had {then} {what}, and this one has {now}")))
}

fn check_devices(then: &Shape, now: &Shape) -> Result<(), RestoreError> {
    check_count("disks", then.disks.len() as u64, now.disks.len() as u64)?;
    check_count("network interfaces", then.nets.len() as u64, now.nets.len() as u64)?;
    for (index, (then, now)) in then.nets.iter().zip(&now.nets).enumerate() {
        if then != now {
            let of = |net: &NetShape| format!("the address {} in PCI slot {}", mac(net.mac), net.place);
            let text = format!("network interface {index} had {}, not {}", of(then), of(now));
            return Err(RestoreError::Shape(text));
        }
    }
    if then.vsock != now.vsock {
        let cid =
            |cid: Option<u32>| cid.map_or("no vsock".into(), |cid| format!("the vsock context id {cid}"));
        return Err(RestoreError::Shape(format!("it had {}, not {}", cid(then.vsock), cid(now.vsock))));
    }
    for (index, (then, now)) in then.disks.iter().zip(&now.disks).enumerate() {
        let of = |disk: &DiskShape| {
            let read_only = if disk.read_only { ", read-only" } else { "" };
            format!("`{}`{read_only} in PCI slot {}", disk.serial, disk.place)
        };
        if of(then) != of(now) {
            return Err(RestoreError::Shape(format!("disk {index} was {}, not {}", of(then), of(now))));
        }
        if let Some(difference) = stamp::difference(then, now) {
            return Err(RestoreError::Disk { index, serial: then.serial.clone(), difference });
        }
    }
    Ok(())
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads a file from its start. Its own position is also that of others who go on from it, and is left alone.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
