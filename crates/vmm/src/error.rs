//! Everything that can keep a machine from running, and what people are told of it.

use std::{error::Error, io};

use ec2vmm_devices::pci::{InsertError, virtio::BuildError};
use ec2vmm_image as image;
use ec2vmm_vmm_api::{Failure, FailureKind};
use vm_memory::GuestMemoryError;

use crate::{
    block,
    boot_source::SourceError,
    inherited::InheritedError,
    memory::MemoryError,
    sandbox::SandboxError,
    smbios,
    snapshot::{PagerError, RestoreError},
    userfault::NoUserfaultfd,
    vm::KvmError,
    x86_64::{acpi, boot::BootError},
};

/// Why there is no machine, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration asks for something that cannot be.
    #[error("{0}")]
    Config(String),
    /// More vCPUs than KVM allows here.
    #[error("{wanted} vCPUs; KVM on this host allows 1 to {max}")]
    Cpus {
        /// How many were asked for.
        wanted: u8,
        /// How many there can be.
        max: usize,
    },
    /// A descriptor is missing.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// The process cannot be shut in.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A disk cannot be used.
    #[error("disk {index}")]
    Disk {
        /// Which, from 0.
        index: usize,
        /// Why.
        source: block::OpenError,
    },
    /// The machine cannot go on from its snapshot.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// No userfaultfd.
    #[error(transparent)]
    Userfault(#[from] NoUserfaultfd),
    /// Its memory cannot be brought in.
    #[error(transparent)]
    Pager(PagerError),
    /// No kernel.
    #[error(transparent)]
    Boot(#[from] SourceError),
    /// ACPI cannot describe the machine.
    #[error(transparent)]
    Acpi(#[from] acpi::TablesError),
    /// SMBIOS cannot describe the machine.
    #[error(transparent)]
    Smbios(#[from] smbios::TablesError),
    /// Tables do not fit into guest memory.
    #[error("writing tables into guest memory")]
    Tables(#[source] GuestMemoryError),
    /// A device's configuration is impossible.
    #[error("making a PCI function")]
    Function(#[from] BuildError),
    /// Two devices in one place.
    #[error(transparent)]
    Slot(#[from] InsertError),
    /// The host's system refused.
    #[error("{what}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// Why it refused.
        source: io::Error,
    },
}

impl From<PagerError> for MachineError {
    fn from(error: PagerError) -> Self {
        match error {
            PagerError::File(error) => Self::Restore(error.into()),
            refused @ PagerError::Refused { .. } => Self::Pager(refused),
        }
    }
}

impl MachineError {
    /// For `map_err`.
    pub fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    /// What people are told.
    pub fn failure(&self) -> Failure {
        let (kind, hint) = self.kind_and_hint();
        Failure { kind, message: chain(self), hint }
    }

    fn kind_and_hint(&self) -> (FailureKind, Option<String>) {
        match self {
            Self::Config(_) | Self::Inherited(_) => (FailureKind::Usage, None),
            Self::Sandbox(_) => (FailureKind::Sandbox, None),
            Self::Cpus { .. } => (FailureKind::Cpus, None),
            Self::Memory(MemoryError::HugePages { pages, .. }) => (
                FailureKind::Memory,
                Some(format!(
                    "the host keeps too few: as root, `sysctl vm.nr_hugepages=N` with {pages} for this machine alone; `grep Huge /proc/meminfo` shows them"
                )),
            ),
            Self::Memory(_) => {
                (FailureKind::Memory, Some("choose a smaller type, or give less --memory".into()))
            }
            Self::Disk { source: block::OpenError::Disk(source), .. } => {
                (disk_kind(source.kind()), source.hint())
            }
            Self::Restore(error) => (error.kind(), error.hint()),
            Self::Userfault(_) => (
                FailureKind::NoUserfaultfd,
                Some(
                    "run as root, or let this user have /dev/userfaultfd (Linux 6.1 and later); memory that is mapped needs none"
                        .into(),
                ),
            ),
            Self::Boot(SourceError::Disk(source)) => (disk_kind(source.kind()), source.hint()),
            Self::Boot(SourceError::Load { source, .. }) => boot_kind(source),
            Self::Boot(SourceError::File(..)) => (FailureKind::BadInput, None),
            Self::Disk { .. }
            | Self::Kvm(_)
            | Self::Pager(_)
            | Self::Acpi(_)
            | Self::Smbios(_)
            | Self::Tables(_)
            | Self::Slot(_)
            | Self::Function(_)
            | Self::System { .. } => (FailureKind::Other, None),
        }
    }
}

fn boot_kind(error: &BootError) -> (FailureKind, Option<String>) {
    match error {
        BootError::NotAKernel(_) | BootError::Not64Bit => (
            FailureKind::WrongKernel,
            Some("an x86-64 Linux kernel is wanted: bzImage (vmlinuz) or ELF (vmlinux)".into()),
        ),
        BootError::TooLarge { .. } | BootError::Memory(_) => {
            (FailureKind::Memory, Some("choose a larger type, or give more --memory".into()))
        }
        BootError::CommandLine { .. } => (FailureKind::Usage, Some("shorten --append".into())),
        BootError::Kernel(_) | BootError::Initrd(_) => (FailureKind::BadInput, None),
    }
}

fn disk_kind(kind: image::ErrorKind) -> FailureKind {
    match kind {
        image::ErrorKind::NotADisk => FailureKind::NotADisk,
        image::ErrorKind::BrokenQcow2 => FailureKind::BrokenQcow2,
        image::ErrorKind::BrokenPartitionTable => FailureKind::BrokenPartitionTable,
        image::ErrorKind::BrokenFileSystem => FailureKind::BrokenFileSystem,
        image::ErrorKind::NoKernel => FailureKind::NoKernel,
        image::ErrorKind::WrongKernel => FailureKind::WrongKernel,
        image::ErrorKind::NotFound => FailureKind::NoSuchImage,
        image::ErrorKind::Permission => FailureKind::Permission,
        image::ErrorKind::Io => FailureKind::Other,
    }
}

/// An error with its causes, after colons.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
