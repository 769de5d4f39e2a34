//! Tap interfaces: one end of a cable whose other end is a machine's network card.
//!
//! Invariant: only an interface that exists is opened. The kernel's own call would make a new one of the
//! same name, which nothing is plugged into.

// The ioctls that attach to an interface and keep it have no safe wrapper.
#![allow(unsafe_code, reason = "TUNSETIFF, TUNSETPERSIST")]

use std::{
    fs::{DirEntry, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use ec2vmm_vmm_api::FailureKind;
use rustix::{
    fs::OFlags,
    io::Errno,
    ioctl::{self, IntegerSetter, Opcode, Updater},
};

use uuid::Uuid;

use crate::Explained;

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no interface of this name.
    #[error("there is no network interface `{name}`")]
    Missing {
        /// As asked for.
        name: String,
    },
    /// The interface is no tap.
    #[error("network interface `{name}` is not a tap")]
    NotATap {
        /// As asked for.
        name: String,
    },
    /// Another process holds it.
    #[error("tap `{name}` is in use by another process")]
    Busy {
        /// As asked for.
        name: String,
    },
    /// This user may not use it.
    #[error("this user may not use tap `{name}`")]
    Permission {
        /// As asked for.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot open tap `{name}`")]
    Open {
        /// As asked for.
        name: String,
        /// Why.
        source: io::Error,
    },
}

impl Explained for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Missing { .. } | Self::NotATap { .. } => FailureKind::NoTap,
            Self::Busy { .. } => FailureKind::TapBusy,
            Self::Permission { .. } => FailureKind::Permission,
            Self::Open { .. } => FailureKind::Other,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing { name } => {
                format!("make it with `ip tuntap add {name} mode tap && ip link set {name} up`")
            }
            Self::NotATap { .. } => "`ip tuntap show` lists the taps of this host".into(),
            Self::Busy { .. } => "give each machine a tap of its own".into(),
            Self::Permission { name, .. } => {
                format!(
                    "run as root, or make the tap for this user: `ip tuntap add {name} mode tap user $USER`"
                )
            }
            Self::Open { .. } => "the tun driver may be missing: `modprobe tun`".into(),
        })
    }
}

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    /// Its queues, at least one. Each carries frames, each after a `virtio_net_hdr`; reading never waits.
    pub queues: Vec<File>,
    /// The interface is switched on.
    pub is_up: bool,
}

/// Opens an existing tap: one that was made with `multi_queue` as often as `queues` says, any other once.
///
/// # Errors
/// [`Error`].
pub fn open(name: &str, queues: u16) -> Result<Tap, Error> {
    let found = Found::look(name)?;
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => Error::Permission { name: name.to_owned(), source },
        _ if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            Error::Busy { name: name.to_owned() }
        }
        _ => Error::Open { name: name.to_owned(), source },
    };
    let count = if found.multi_queue { queues.max(1) } else { 1 };
    let files: io::Result<Vec<File>> = (0..count).map(|_| attach(name, found.multi_queue)).collect();
    let files = files.map_err(failed)?;
    // Removed since we looked: then this one is new and goes with the descriptor.
    let now = Found::look(name).ok().filter(|now| now.index == found.index);
    let now = now.ok_or_else(|| Error::Missing { name: name.to_owned() })?;
    // The kernel lets several processes have queues of one tap. Two that open it at once both give it up.
    if now.queues > files.len() {
        return Err(Error::Busy { name: name.to_owned() });
    }
    Ok(Tap { queues: files, is_up: now.is_up })
}

/// Attaches to the tap of this name in the calling thread's network namespace, and makes it where there is
/// none: then it goes with the descriptor, unless it is [kept](keep).
///
/// # Errors
/// The kernel's: `EBUSY` where another process has it and it has one queue, `EINVAL` where it is no tap, or
/// has several queues where it should have one, or the other way round.
pub(crate) fn attach(name: &str, multi_queue: bool) -> io::Result<File> {
    if name.is_empty() || name.len() >= IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open("/dev/net/tun")?;
    let queues = if multi_queue { IFF_MULTI_QUEUE } else { 0 };
    let mut request = Request::new(name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | queues);
    // SAFETY: `Request` has the size and layout of the kernel's `struct ifreq`, which TUNSETIFF reads and writes.
    let attach = unsafe { Updater::<TUNSETIFF, Request>::new(&mut request) };
    // SAFETY: the opcode and the type belong together, see above; the kernel keeps no pointer.
    unsafe { ioctl::ioctl(&file, attach) }?;
    Ok(file)
}

/// Lets a tap stay when nobody has it.
///
/// # Errors
/// The kernel's.
pub(crate) fn keep(tap: &File) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes a number for its argument.
    let keep = unsafe { IntegerSetter::<TUNSETPERSIST>::new_usize(1) };
    // SAFETY: as above; the descriptor is a tap's, or the kernel says that it is not.
    unsafe { ioctl::ioctl(tap, keep) }?;
    Ok(())
}

/// The address of the card at the other end of a tap: locally administered, made from the tap's name and
/// from what `machine_id` holds, so that a guest that is started again finds its interface again. Without
/// such a file, from the name alone.
pub fn stable_mac(machine_id: &Path, name: &str) -> [u8; 6] {
    let host = std::fs::read(machine_id).unwrap_or_default();
    let digest = Uuid::new_v5(&ADDRESSES, &[host.as_slice(), b"\0", name.as_bytes()].concat());
    let [first, second, third, fourth, fifth, sixth, ..] = digest.into_bytes();
    // IEEE 802: locally administered, and not of a group.
    [(first | 0x02) & !0x01, second, third, fourth, fifth, sixth]
}

/// What the kernel tells about an interface without attaching to it.
struct Found {
    /// Never given to two interfaces.
    index: u32,
    is_up: bool,
    multi_queue: bool,
    /// Queues that somebody has; at least one, also where nobody has.
    queues: usize,
}

impl Found {
    fn look(name: &str) -> Result<Self, Error> {
        let missing = || Error::Missing { name: name.to_owned() };
        // The name becomes part of a path.
        if name.is_empty() || name.len() >= IFNAMSIZ || name.starts_with('.') || name.contains('/') {
            return Err(missing());
        }
        let folder = Path::new("/sys/class/net").join(name);
        let index = read_number(&folder.join("ifindex")).ok_or_else(missing)?;
        let link = read_number(&folder.join("flags")).ok_or_else(missing)?;
        let flags = read_number(&folder.join("tun_flags"))
            .and_then(|flags| u16::try_from(flags).ok())
            .filter(|flags| flags & IFF_TAP != 0)
            .ok_or_else(|| Error::NotATap { name: name.to_owned() })?;
        let queues = std::fs::read_dir(folder.join("queues")).map_err(|_| missing())?;
        let receives = |entry: &io::Result<DirEntry>| {
            entry.as_ref().is_ok_and(|entry| entry.file_name().as_encoded_bytes().starts_with(b"rx-"))
        };
        Ok(Self {
            index,
            is_up: link & IFF_UP != 0,
            multi_queue: flags & IFF_MULTI_QUEUE != 0,
            queues: queues.filter(receives).count(),
        })
    }
}

/// A file of sysfs that holds one number, decimal or with `0x`.
fn read_number(path: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(path).ok()?;
    match text.trim().strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.trim().parse().ok(),
    }
}

/// `struct ifreq` of linux/if.h, as far as TUNSETIFF looks at it.
#[repr(C)]
struct Request {
    name: [u8; IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

impl Request {
    fn new(name: &str, flags: u16) -> Self {
        let mut request = Self { name: [0; IFNAMSIZ], flags, rest: [0; 22] };
        for (to, from) in request.name.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        request
    }
}

const _: () = assert!(size_of::<Request>() == 40, "struct ifreq of a 64-bit kernel");

/// The name space of addresses.
const ADDRESSES: Uuid = Uuid::from_u128(0x0b5e_6c1f_3d0a_4f4e_8d53_21c7_9a60_44be);

// linux/if.h and linux/if_tun.h.
const IFNAMSIZ: usize = 16;
const IFF_UP: u32 = 0x1;
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUNSETIFF: Opcode = ioctl::opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: Opcode = ioctl::opcode::write::<i32>(b'T', 203);

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use super::{Error, open, stable_mac};

    #[test]
    fn nothing_is_made_for_a_wrong_name() {
        for name in ["ec2vmm-none", "", ".", "..", "a/b", "a-name-longer-than-fifteen"] {
            assert!(matches!(open(name, 1), Err(Error::Missing { .. })), "{name}");
        }
        assert!(!Path::new("/sys/class/net/ec2vmm-none").exists());
    }

    #[test]
    fn addresses_stay() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| {
            let path = folder.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        });
        assert_eq!(stable_mac(&one, "tap0"), stable_mac(&one, "tap0"));
        assert_ne!(stable_mac(&one, "tap0"), stable_mac(&one, "tap1"));
        assert_ne!(stable_mac(&one, "tap0"), stable_mac(&two, "tap0"));
        for number in 0..1000 {
            let [first, ..] = stable_mac(Path::new("/none"), &format!("tap{number}"));
            assert_eq!(first & 0x03, 0x02);
        }
    }

    /// In a network of its own; not without the rights to make one.
    #[test]
    #[allow(clippy::print_stderr, reason = "a test that leaves something out says so")]
    fn a_tap_has_one_owner_whatever_its_queues() {
        let make = "mount -t sysfs sysfs /sys && ip tuntap add plain0 mode tap && \
                    ip tuntap add multi0 mode tap multi_queue && ip link set multi0 up && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "private", "--", "sh", "-c", make, "sh"]);
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", "tap::tests::among_taps", "--include-ignored", "--nocapture"]);
        let possible = Command::new("unshare").args(["--net", "--mount", "ip", "-V"]).output();
        if !possible.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED a_tap_has_one_owner_whatever_its_queues: it needs root, `unshare` and `ip`");
            return;
        }
        let output = command.env(AMONG_TAPS, "yes").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}{output:?}");
    }

    #[test]
    #[ignore = "not a test: the part of the one above that runs in its own network"]
    fn among_taps() {
        if std::env::var_os(AMONG_TAPS).is_none() {
            return;
        }
        let one = open("plain0", 4).unwrap();
        assert_eq!((one.queues.len(), one.is_up), (1, false));
        assert!(matches!(open("plain0", 1), Err(Error::Busy { .. })));
        for queues in [1, 3] {
            let many = open("multi0", queues).unwrap();
            assert_eq!((many.queues.len(), many.is_up), (usize::from(queues), true));
            for wanted in [1, 2] {
                assert!(matches!(open("multi0", wanted), Err(Error::Busy { .. })), "{queues} {wanted}");
            }
        }
        drop(one);
        open("plain0", 1).unwrap();
    }

    const AMONG_TAPS: &str = "EC2VMM_TEST_AMONG_TAPS";

    #[test]
    fn loopback_is_no_tap() {
        assert!(matches!(open("lo", 1), Err(Error::NotATap { .. })));
    }
}
