//! Who the process is, what it may do, and how much it may take.

use rustix::{
    io::Errno,
    process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit},
    thread::{
        CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
        set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

use super::SandboxError;

/// Whom to become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Sets what the kernel counts for this process, soft and hard limit alike. With `alone`, nobody else has
/// this process's user id, so that its tasks can be counted by it.
pub(super) fn limit(alone: bool) -> Result<(), SandboxError> {
    // A core would hold the guest's memory. The rest is of no use to this process.
    let none = [Resource::Core, Resource::Msgqueue, Resource::Nice, Resource::Rtprio];
    let limits = none.map(|resource| (resource, 0)).into_iter();
    let limits = limits.chain([(Resource::Nofile, DESCRIPTORS_MAX)]);
    for (resource, most) in limits.chain(alone.then_some((Resource::Nproc, TASKS_MAX))) {
        let hard = getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
        setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })
            .map_err(SandboxError::refused("limiting what the process may take"))?;
    }
    Ok(())
}

/// Gives up every capability, now and for ever, and becomes `ids` where there are some.
pub(super) fn drop_all(ids: Option<Ids>) -> Result<(), SandboxError> {
    let failed = SandboxError::refused;
    let may_change_sets = capabilities(None).map_err(failed("reading its capabilities"))?;
    if may_change_sets.effective.contains(CapabilitySet::SETPCAP) {
        empty_bounding_set()?;
        set_capabilities_secure_bits(no_way_back()).map_err(failed("locking its capabilities"))?;
    }
    clear_ambient_capability_set().map_err(failed("giving up ambient capabilities"))?;
    if let Some(Ids { uid, gid }) = ids {
        // The calling thread is the only one.
        set_thread_groups(&[]).map_err(failed("leaving every group"))?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_res_gid(gid, gid, gid).map_err(failed("becoming a group of its own"))?;
        set_thread_res_uid(uid, uid, uid).map_err(failed("becoming a user of its own"))?;
    }
    let nothing = CapabilitySet::empty();
    let none = CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing };
    set_capabilities(None, none).map_err(failed("giving up its capabilities"))?;
    set_no_new_privs(true).map_err(failed("giving up new privileges"))
}

/// What a program could be given that this process starts; it starts none.
fn empty_bounding_set() -> Result<(), SandboxError> {
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel knows no more of them.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(SandboxError::refused("emptying its bounding set")(errno)),
        }
    }
    Ok(())
}

/// Becoming root gives no capabilities, and none of this can be changed.
fn no_way_back() -> CapabilitiesSecureBits {
    CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED
}

/// A vsock device with many streams takes a few thousand.
const DESCRIPTORS_MAX: u64 = 16 * 1024;
/// vCPUs, the event loop, and workers of io_uring: as many as the machine's control group allows.
const TASKS_MAX: u64 = 512;
