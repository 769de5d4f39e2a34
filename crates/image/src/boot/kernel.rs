//! What kernel a file is: format, architecture and release.
//!
//! Sources: the Linux x86 boot protocol (`Documentation/arch/x86/boot.rst`), ELF, and the headers of
//! arm64 and RISC-V images (`Documentation/arch/{arm64,riscv}/boot*.rst`).

use serde::Serialize;

use crate::bytes::{array, le16, le32, text};

/// A kernel that an x86-64 machine can start.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Kernel {
    /// How the file is built.
    pub format: KernelFormat,
    /// Always [`Architecture::X86_64`]: all others are refused.
    pub architecture: Architecture,
    /// What `uname -r` will say, where the file says it.
    pub release: Option<String>,
}

/// How a kernel file is built.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelFormat {
    /// The compressed image of Linux on x86, which starts with its own loader.
    #[serde(rename = "bzimage")]
    BzImage,
    /// An uncompressed ELF file.
    Elf,
}

/// A processor architecture.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit ARM.
    Arm64,
    /// 32-bit ARM.
    Arm,
    /// RISC-V.
    #[serde(rename = "riscv")]
    RiscV,
    /// LoongArch.
    #[serde(rename = "loongarch")]
    LoongArch,
    /// POWER.
    #[serde(rename = "powerpc")]
    PowerPc,
    /// IBM Z.
    S390,
}

impl Architecture {
    /// The name that people know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86-64",
            Self::X86 => "32-bit x86",
            Self::Arm64 => "arm64",
            Self::Arm => "32-bit ARM",
            Self::RiscV => "RISC-V",
            Self::LoongArch => "LoongArch",
            Self::PowerPc => "POWER",
            Self::S390 => "IBM Z",
        }
    }
}

/// Why a file is no kernel for an x86-64 machine.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KernelError {
    /// A kernel for another architecture.
    #[error("the kernel is for {}, this machine is x86-64", .0.name())]
    WrongArchitecture(Architecture),
    /// A bzImage that is too old, or without the 64-bit entry.
    #[error("the kernel is too old: boot protocol {}.{:02}, 2.12 is the least", .0 >> 8, .0 & 0xff)]
    TooOld(u16),
    /// Something compressed that only a firmware or a loader unpacks.
    #[error("the kernel is {0}, which has to be unpacked first")]
    Packed(&'static str),
    /// Anything else.
    #[error("the file is no kernel")]
    Unknown,
}

impl Kernel {
    /// Looks at the first [`Kernel::HEAD_BYTES`] of a kernel file, or all of it.
    ///
    /// # Errors
    /// The file is no kernel for an x86-64 machine.
    pub fn identify(head: &[u8]) -> Result<Self, KernelError> {
        let made = |format, release| Ok(Self { format, architecture: Architecture::X86_64, release });
        if array(head, 0x202).is_some_and(|magic: [u8; 4]| &magic == b"HdrS") {
            return match bzimage(head)? {
                Architecture::X86_64 => made(KernelFormat::BzImage, bzimage_release(head)),
                other => Err(KernelError::WrongArchitecture(other)),
            };
        }
        if head.starts_with(b"\x7fELF") {
            return match elf(head).ok_or(KernelError::Unknown)? {
                Architecture::X86_64 => made(KernelFormat::Elf, None),
                other => Err(KernelError::WrongArchitecture(other)),
            };
        }
        let packed: [(&[u8], &str); 3] = [
            (b"\x1f\x8b", "compressed with gzip"),
            (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
            (b"\x27\x05\x19\x56", "a U-Boot image"),
        ];
        if let Some((_, name)) = packed.into_iter().find(|(magic, _)| head.starts_with(magic)) {
            return Err(KernelError::Packed(name));
        }
        match other_image(head) {
            Some(other) => Err(KernelError::WrongArchitecture(other)),
            None => Err(KernelError::Unknown),
        }
    }

    /// How much of a file [`Kernel::identify`] looks at: the release lies in the setup code, which is at
    /// most 64 sectors.
    pub const HEAD_BYTES: usize = 33 * 1024;
}

fn bzimage(head: &[u8]) -> Result<Architecture, KernelError> {
    let version = le16(head, 0x206).ok_or(KernelError::Unknown)?;
    if version < 0x020c {
        return Err(KernelError::TooOld(version));
    }
    let flags = le16(head, 0x236).ok_or(KernelError::Unknown)?;
    Ok(if flags & XLF_KERNEL_64 != 0 { Architecture::X86_64 } else { Architecture::X86 })
}

/// `kernel_version` points 0x200 before a text such as `6.1.0-18-cloud-amd64 (debian-kernel@…) #1 SMP`.
fn bzimage_release(head: &[u8]) -> Option<String> {
    let at = le16(head, 0x20e).filter(|&at| at != 0)?;
    let version = text(head, usize::from(at) + 0x200, 128);
    let release = version.split_whitespace().next()?;
    release.chars().all(|c| c.is_ascii_graphic()).then(|| release.to_owned())
}

fn elf(head: &[u8]) -> Option<Architecture> {
    let (class, order) = (*head.get(4)?, *head.get(5)?);
    let machine = array(head, 18)?;
    let machine = if order == 1 { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) };
    Some(match machine {
        62 if class == 2 => Architecture::X86_64,
        62 | 3 => Architecture::X86,
        183 => Architecture::Arm64,
        40 => Architecture::Arm,
        243 => Architecture::RiscV,
        258 => Architecture::LoongArch,
        20 | 21 => Architecture::PowerPc,
        22 => Architecture::S390,
        _ => return None,
    })
}

/// Images of other architectures, and EFI programs.
fn other_image(head: &[u8]) -> Option<Architecture> {
    let magic: [u8; 4] = array(head, 0x38)?;
    if &magic == b"ARM\x64" {
        return Some(Architecture::Arm64);
    }
    if &magic == b"RSC\x05" {
        return Some(Architecture::RiscV);
    }
    if le32(head, 0x24) == Some(0x016f_2818) {
        return Some(Architecture::Arm);
    }
    if !head.starts_with(b"MZ") {
        return None;
    }
    let pe = usize::try_from(le32(head, 0x3c)?).ok()?;
    if array::<4>(head, pe)? != *b"PE\0\0" {
        return None;
    }
    match le16(head, pe + 4)? {
        0xaa64 => Some(Architecture::Arm64),
        0x01c0 | 0x01c2 | 0x01c4 => Some(Architecture::Arm),
        0x5032 | 0x5064 => Some(Architecture::RiscV),
        0x6232 | 0x6264 => Some(Architecture::LoongArch),
        0x014c => Some(Architecture::X86),
        _ => None,
    }
}

/// The kernel has the 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1;
