//! What this host can give: KVM, processors, memory. Asked before a machine process is started, so that
//! the answer is a sentence and not a failed system call.

use std::{
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use ec2vmm_vmm_api::FailureKind;

use crate::{Explained, kind_of_io};

/// What the host lacks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM cannot be used.
    #[error("cannot open {}", device.display())]
    Kvm {
        /// `/dev/kvm`.
        device: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// KVM is there, but would have to emulate every instruction.
    #[error(
        "this host's processors have no hardware virtualization: /proc/cpuinfo shows neither vmx nor svm"
    )]
    NoHardwareVirtualization,
    /// More memory asked for than there is.
    #[error(
        "the machine is to have {wanted_mib} MiB of memory, and this host has {available_mib} MiB available"
    )]
    Memory {
        /// Asked for, MiB.
        wanted_mib: u64,
        /// Available without swapping, MiB.
        available_mib: u64,
    },
}

impl Explained for Error {
    fn kind(&self) -> FailureKind {
        match self {
            // A driver that is built in but finds no virtualization answers ENODEV or ENXIO.
            Self::Kvm { source, .. } => match kind_of_io(source, FailureKind::NoKvm) {
                FailureKind::Permission => FailureKind::Permission,
                _ => FailureKind::NoKvm,
            },
            Self::NoHardwareVirtualization => FailureKind::NoHardwareVirtualization,
            Self::Memory { .. } => FailureKind::Memory,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Kvm { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "let this user use KVM with `sudo usermod -aG kvm $USER` and log in again, or run as root"
                    .into()
            }
            Self::Kvm { .. } => {
                "load the driver with `modprobe kvm_intel` or `modprobe kvm_amd`; on a virtual \
                                 machine, switch nested virtualization on; else run inside `scripts/lab`"
                    .into()
            }
            Self::NoHardwareVirtualization => {
                "Linux cannot be run here; `scripts/lab run -- ec2vmm run ...` brings its own virtualization"
                    .into()
            }
            Self::Memory { available_mib, .. } => {
                format!(
                    "ask for at most `--memory {available_mib}M`, or for a smaller `--type` (see `ec2vmm types`)"
                )
            }
        })
    }
}

/// Opens the KVM device, `/dev/kvm`.
///
/// # Errors
/// [`Error::Kvm`].
pub fn open_kvm(device: &Path) -> Result<File, Error> {
    let opened = OpenOptions::new().read(true).write(true).open(device);
    opened.map_err(|source| Error::Kvm { device: device.to_owned(), source })
}

/// Looks for vmx or svm among the processor's flags. A host without them may still have a KVM device, one
/// that emulates every instruction; it runs a few instructions, but not Linux.
///
/// # Errors
/// [`Error::NoHardwareVirtualization`]. A host whose `/proc/cpuinfo` cannot be read passes: KVM will tell.
pub fn check_hardware_virtualization() -> Result<(), Error> {
    match std::fs::read_to_string("/proc/cpuinfo") {
        Ok(cpuinfo) if !shows_virtualization(&cpuinfo) => Err(Error::NoHardwareVirtualization),
        _ => Ok(()),
    }
}

/// Compares with the memory that the host can give without swapping.
///
/// # Errors
/// [`Error::Memory`]. A host whose `/proc/meminfo` cannot be read passes.
pub fn check_memory(wanted_mib: u64) -> Result<(), Error> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match available_mib(&meminfo) {
        Some(available_mib) if wanted_mib > available_mib => Err(Error::Memory { wanted_mib, available_mib }),
        _ => Ok(()),
    }
}

/// Processors that this process may use.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Memory that this host has in all, MiB.
///
/// # Errors
/// The host does not tell.
pub fn memory_mib() -> io::Result<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    mib(&meminfo, "MemTotal:").ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn shows_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .is_some_and(|(_, flags)| flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm")))
}

fn available_mib(meminfo: &str) -> Option<u64> {
    mib(meminfo, "MemAvailable:")
}

fn mib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use ec2vmm_vmm_api::FailureKind;

    use super::{Error, available_mib, check_memory, open_kvm, shows_virtualization};
    use crate::Explained;

    #[test]
    fn flags_are_words() {
        assert!(shows_virtualization("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(shows_virtualization("flags : svm"));
        assert!(!shows_virtualization("flags\t\t: fpu svm_lock xvmx\nbugs: vmx\n"));
        assert!(!shows_virtualization("Features: fp asimd"));
    }

    #[test]
    fn memory_that_can_be_given() {
        assert_eq!(available_mib("MemTotal: 9 kB\nMemAvailable:    2097152 kB\n"), Some(2048));
        assert_eq!(available_mib("MemTotal: 9 kB\n"), None);
        assert!(check_memory(1).is_ok());
        assert!(matches!(check_memory(u64::MAX), Err(Error::Memory { wanted_mib: u64::MAX, .. })));
    }

    #[test]
    fn a_missing_device_is_no_kvm() {
        let folder = tempfile::tempdir().unwrap();
        let error = open_kvm(&folder.path().join("kvm")).unwrap_err();
        assert_eq!(error.kind(), FailureKind::NoKvm);
        // Opening a folder for writing fails in yet another way.
        assert_eq!(open_kvm(folder.path()).unwrap_err().kind(), FailureKind::NoKvm);
        let denied =
            Error::Kvm { device: "/dev/kvm".into(), source: std::io::ErrorKind::PermissionDenied.into() };
        assert_eq!(denied.kind(), FailureKind::Permission);
        assert!(denied.hint().unwrap().contains("usermod"));
    }
}
