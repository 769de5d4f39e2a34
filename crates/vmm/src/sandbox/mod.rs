//! Shuts this process in, before it looks at anything of the guest's.
//!
//! ```text
//! born by its owner ─► configuration read ─► enter ─────────────► disks, kernel, devices, guest
//!   (pid namespace,       (trusted: the        namespaces, empty     narrow, in each vCPU's
//!    user namespace)       owner wrote it)     root, ids, limits,    and disk's thread
//!                                              capabilities, filter
//! ```
//!
//! Invariants: what was asked for is done in full, or there is no machine. [`enter`] is called while the
//! process has one thread. Nothing that it takes away comes back: `docs/SECURITY.md` has the whole list, and
//! the test that proves each entry.

mod filter;
mod privileges;
mod root;
pub mod rules;

use std::{io, os::fd::OwnedFd, sync::OnceLock};

use ec2vmm_vmm_api::Sandbox;
use rustix::{
    io::Errno,
    process::{DumpableBehavior, set_dumpable_behavior},
    stdio,
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};

pub use self::{
    filter::{FilterError, narrow},
    rules::Thread,
};

/// The process could not be shut in.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The host refused a step.
    #[error("entering the sandbox: {what}")]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Whoever started the process did not do his part.
    #[error("entering the sandbox: the process was not born into a pid namespace of its own")]
    NoPidNamespace,
    /// The host has no Landlock, or it is switched off.
    #[error("entering the sandbox: this host has no Landlock")]
    NoLandlock,
    /// The filters cannot be had.
    #[error("entering the sandbox: filtering system calls")]
    Filter(#[from] FilterError),
}

impl SandboxError {
    fn refused(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Refused { what, source: errno.into() }
    }
}

/// Does what `sandbox` says. `network` is the namespace that it names, open. `prepare` makes what the filters
/// do not let be made, with the rights that the process has from then on.
///
/// # Errors
/// See [`SandboxError`]: the process must go on to nothing but its end.
pub fn enter<T>(
    sandbox: &Sandbox,
    network: Option<OwnedFd>,
    prepare: impl FnOnce() -> T,
) -> Result<T, SandboxError> {
    remember_pid();
    match sandbox {
        Sandbox::Off => return Ok(prepare()),
        Sandbox::Full { .. } | Sandbox::User => {
            if std::process::id() != FIRST_PID {
                return Err(SandboxError::NoPidNamespace);
            }
            enter_namespaces(network)?;
            root::leave_for_an_empty_one()?;
        }
        Sandbox::Landlock | Sandbox::Filters => {}
    }
    forget_standard_input()?;
    let ids = match *sandbox {
        Sandbox::Full { uid, gid, .. } => Some(privileges::Ids { uid, gid }),
        _ => None,
    };
    privileges::limit(ids.is_some())?;
    privileges::drop_all(ids)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(SandboxError::refused("keeping others from looking in"))?;
    if matches!(sandbox, Sandbox::Landlock) {
        close_every_path()?;
    }
    share_one_heap();
    let prepared = prepare();
    filter::enter()?;
    Ok(prepared)
}

/// The process's number as its owner has it, who is in another namespace.
pub fn pid_outside() -> u32 {
    PID_OUTSIDE.get().copied().unwrap_or_else(std::process::id)
}

/// The file system that says it is out of reach later.
fn remember_pid() {
    let number = std::fs::read_link("/proc/self").ok().and_then(|path| path.to_str()?.parse().ok());
    if let Some(number) = number {
        let _ = PID_OUTSIDE.set(number);
    }
}

static PID_OUTSIDE: OnceLock<u32> = OnceLock::new();

/// All but those of processes and of users, into which a process can only be born.
fn enter_namespaces(network: Option<OwnedFd>) -> Result<(), SandboxError> {
    let mut flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    match network {
        Some(network) => {
            let network_only = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), network_only)
                .map_err(SandboxError::refused("joining an empty network namespace"))?;
        }
        None => flags |= UnshareFlags::NEWNET,
    }
    // SAFETY: this process has one thread, and the table of descriptors, which would be unsafe to part from,
    // is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(SandboxError::refused("making namespaces"))
}

/// The configuration was read; what it was read from is not needed any more, and might be anything.
fn forget_standard_input() -> Result<(), SandboxError> {
    rustix::stdio::dup2_stdin(stdio::stdout()).map_err(SandboxError::refused("closing standard input"))
}

/// Where there are no namespaces to be had: no path can be opened, nothing be bound or connected, and no
/// process outside be signalled, as far as this host's Landlock goes.
fn close_every_path() -> Result<(), SandboxError> {
    use landlock::{
        ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
    };
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .map(|rules| rules.set_compatibility(CompatLevel::BestEffort))
        .and_then(|rules| rules.handle_access(AccessFs::from_all(ABI::V5)))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI::V4)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self);
    match restricted {
        Ok(status) if status.ruleset != RulesetStatus::NotEnforced => Ok(()),
        Ok(_) => Err(SandboxError::NoLandlock),
        Err(error) => {
            log::debug!("Landlock: {error}");
            Err(SandboxError::NoLandlock)
        }
    }
}

/// glibc would give threads heaps of their own, up to a number that it makes out from a file. Few of our
/// threads allocate at all.
fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: there is one thread, and the number is one that mallopt(3) allows.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } != 1 {
        log::debug!("the heap is not one");
    }
}

/// Of the first process in a pid namespace.
const FIRST_PID: u32 = 1;
