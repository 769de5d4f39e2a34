//! Network namespaces with names, as `ip netns` makes them: a file that the namespace is mounted on.
//!
//! Invariant: no thread that others use is ever moved. What works inside a namespace runs on a thread of
//! its own that ends with it; sockets made there may be used from anywhere.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use tokio::{runtime::Handle, sync::oneshot};

use super::{Error, changed};

/// A namespace that is there.
#[derive(Debug)]
pub(super) struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes a namespace of this name, or finds it.
    pub(super) async fn ensure(folder: &Path, name: &str) -> Result<Self, Error> {
        if let Some(there) = Self::open(folder, name)? {
            return Ok(there);
        }
        let path = folder.join(name);
        on_a_thread({
            let (folder, path) = (folder.to_owned(), path.clone());
            move || make(&folder, &path)
        })
        .await?
        .map_err(|source| Error::File {
            what: "make the network namespace",
            path: path.clone(),
            source,
        })?;
        Self::open(folder, name)?.ok_or_else(|| Error::File {
            what: "find again the network namespace",
            path,
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// Finds a namespace. A file on which none is mounted is none.
    pub(super) fn open(folder: &Path, name: &str) -> Result<Option<Self>, Error> {
        let path = folder.join(name);
        let failed = |source| Error::File { what: "open the network namespace", path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let system = rustix::fs::fstatfs(&file).map_err(|errno| failed(errno.into()))?;
        Ok((system.f_type == NSFS_MAGIC).then_some(Self { file }))
    }

    /// The two are one.
    pub(super) fn is(&self, other: &Self) -> Result<bool, Error> {
        let failed = |source| Error::System { what: "look at a network namespace".into(), source };
        let [one, other] = [&self.file, &other.file].map(|file| file.metadata().map_err(failed));
        let (one, other) = (one?, other?);
        Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
    }

    /// Does something inside, with the runtime at hand.
    pub(super) async fn enter<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let failed = |source| Error::System { what: "enter a network namespace".into(), source };
        let file = self.file.try_clone().map_err(failed)?;
        on_a_thread(move || setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map(|()| act()))
            .await?
            .map_err(|errno| failed(errno.into()))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Takes a namespace's name away. It ends when nothing is left that uses it.
pub(super) fn remove(folder: &Path, name: &str) -> Result<(), Error> {
    let path = folder.join(name);
    let failed = |source| Error::File { what: "remove the network namespace", path: path.clone(), source };
    // Mounted several times where somebody else did so too.
    while umount2(&path, MntFlags::MNT_DETACH).is_ok() {
        changed(format_args!("namespace {name} unmounted"));
    }
    match std::fs::remove_file(&path) {
        Ok(()) => changed(format_args!("namespace {name} removed")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(())
}

/// The names in a folder of namespaces, also those on which nothing is mounted.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let failed =
        |source| Error::File { what: "list the network namespaces in", path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries
        .map(|entry| entry.map(|entry| entry.file_name().into_string().ok()))
        .filter_map(Result::transpose)
        .collect::<io::Result<_>>()
        .map_err(failed)
}

/// On a thread that is thrown away afterwards.
fn make(folder: &Path, path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    share(folder)?;
    match File::create_new(path) {
        Ok(_) => changed(format_args!("file {} made", path.display())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    unshare(CloneFlags::CLONE_NEWNET)?;
    mount(Some(Path::new("/proc/thread-self/ns/net")), path, NONE, MsFlags::MS_BIND, NONE)?;
    changed(format_args!("namespace {} made", path.display()));
    Ok(())
}

/// Makes what is mounted in the folder seen by every mount namespace, as `ip netns` does: else a process
/// that was started before would keep a namespace alive, or not find it.
fn share(folder: &Path) -> io::Result<()> {
    let shared = || mount(NONE, folder, NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE);
    if shared().is_err() {
        // It is no mount yet.
        mount(Some(folder), folder, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
        shared()?;
    }
    Ok(())
}

async fn on_a_thread<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let failed = |source| Error::System { what: "start a thread".into(), source };
    let runtime = Handle::current();
    let (tell, told) = oneshot::channel();
    thread::Builder::new()
        .name("namespace".into())
        .spawn(move || {
            let _runtime = runtime.enter();
            // Nobody waits any more: then nobody wants the result.
            let _ = tell.send(act());
        })
        .map_err(failed)?;
    told.await.map_err(|_| failed(io::Error::other("the thread ended without a result")))
}

const NONE: Option<&Path> = None;

/// linux/magic.h: the file system of namespaces.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
