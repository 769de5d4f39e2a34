//! An empty root: a file system in memory that holds nothing, takes nothing, and is read-only.

use rustix::{
    fs::{CWD, Mode},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags},
};

use super::SandboxError;

/// Changes to it, and lets go of the host's. Only this process's mount namespace changes, which goes with
/// the process: nothing stays on the host.
pub(super) fn leave_for_an_empty_one() -> Result<(), SandboxError> {
    let failed = SandboxError::refused;
    // What is mounted here shall not be seen there, nor the other way round.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("parting from the host's mounts"))?;
    let empty = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(failed("making an empty root"))?;
    for (key, value) in [("nr_inodes", "1"), ("nr_blocks", "1"), ("mode", "0555")] {
        rustix::mount::fsconfig_set_string(&empty, key, value).map_err(failed("making an empty root"))?;
    }
    rustix::mount::fsconfig_create(&empty).map_err(failed("making an empty root"))?;
    let nothing_works = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = rustix::mount::fsmount(&empty, FsMountFlags::FSMOUNT_CLOEXEC, nothing_works)
        .map_err(failed("mounting an empty root"))?;
    // On top of the present one: no folder of the host's is needed for it.
    rustix::mount::move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(failed("mounting an empty root"))?;
    rustix::process::fchdir(&root).map_err(failed("entering the empty root"))?;
    // pivot_root(2), "pivot_root(".", ".")": the old root comes to lie on the new one, and is taken off.
    rustix::process::pivot_root(".", ".").map_err(failed("changing to the empty root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("letting go of the host's root"))?;
    rustix::process::chdir("/").map_err(failed("entering the empty root"))?;
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    Ok(())
}
