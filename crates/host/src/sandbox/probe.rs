//! What this host lets an ordinary user have. Some forbid user namespaces, and some let them be made but
//! nothing be done in them, so that one has to try.
#![allow(unsafe_code, reason = "what a child does that is to try")]

use std::{io, os::fd::AsFd, ptr};

use rustix::process::WaitIdOptions;

use crate::spawn::{IdMaps, errno, waited};

/// Whether a process can be born into a user namespace and make all others there.
pub(super) fn user_namespaces() -> io::Result<()> {
    let ids = IdMaps::new();
    let flags = libc::SIGCHLD | libc::CLONE_NEWUSER | libc::CLONE_NEWPID;
    // SAFETY: as in `spawn`: a copy of this process, which allocates nothing and ends below.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, ptr::null::<u8>(), 0, 0, 0) };
    match pid {
        ..0 => return Err(io::Error::last_os_error()),
        0 => {
            let result = ids.write().and_then(|()| try_the_rest());
            // SAFETY: ends this process, and runs nothing of the parent's.
            unsafe { libc::_exit(result.err().unwrap_or_default()) }
        }
        _ => {}
    }
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("no such process"))?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let status = waited(pidfd.as_fd(), WaitIdOptions::EXITED)?;
    match status.and_then(|status| status.code()) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("the process that was to try was killed")),
    }
}

fn try_the_rest() -> Result<(), libc::c_int> {
    let flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    // SAFETY: given numbers only, in a process with one thread.
    if unsafe { libc::unshare(flags) } != 0 {
        return Err(errno());
    }
    let (nothing, root) = (ptr::null(), c"/".as_ptr());
    let private = libc::MS_PRIVATE | libc::MS_REC;
    // SAFETY: a text with an end; the kernel looks at nothing else for these flags.
    let made = unsafe { libc::mount(nothing, root, nothing, private, ptr::null()) };
    if made == 0 { Ok(()) } else { Err(errno()) }
}

/// Whether this host has Landlock, switched on.
pub(super) fn landlock() -> bool {
    const VERSION: libc::c_uint = 1;
    // SAFETY: asks for a number (landlock_create_ruleset(2)).
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0, VERSION) };
    abi >= 1
}
