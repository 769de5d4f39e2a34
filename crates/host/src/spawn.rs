//! A machine process is born: in namespaces of processes and users of its own where it shall have them, with
//! what it is handed, and nothing else of ours.
//!
//! `fork` and `exec`, except that namespaces of processes and users are such that a process can only be born
//! into them. So it is our child like any other: its number, its end and its process group are what we see.
//! All other parts of a sandbox the process enters by itself, see `crates/vmm/src/sandbox`.
//!
//! Invariant: between birth and `exec` nothing allocates, locks, or returns; all that is needed was made
//! before.
#![allow(unsafe_code, reason = "what is done between clone and exec")]

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, process::ExitStatusExt},
    },
    path::Path,
    process::ExitStatus,
    ptr,
};

use rustix::{
    pipe::PipeFlags,
    process::{Signal, WaitId, WaitIdOptions},
};

/// Namespaces that a process is born into.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Namespaces {
    /// Ours.
    None,
    /// Its own of processes, in which it is the first. Needs root.
    Processes,
    /// Its own of processes and of users, in which it is root and can be nobody else. Anybody may.
    UsersAndProcesses,
}

/// What a process is made of.
#[derive(Debug)]
pub(crate) struct Birth<'a> {
    /// The program.
    pub(crate) program: &'a Path,
    /// All the environment it has.
    pub(crate) variables: &'a [(String, String)],
    pub(crate) stdin: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// What it keeps of our descriptors, under the numbers that they have here.
    pub(crate) handed: &'a [OwnedFd],
    pub(crate) namespaces: Namespaces,
    /// The entrance of the control group that it is in, if not in ours.
    pub(crate) group: Option<BorrowedFd<'a>>,
}

/// A child of this process. Dropped, it lives on, and is waited for by whoever holds its pidfd.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

impl Child {
    /// Its number here. It is ours, so it stays the process's until it was waited for.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable when it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Ends it at once. One that has ended is no error.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// How it has ended, if it has.
    pub(crate) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = waited(self.pidfd.as_fd(), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
        }
        Ok(self.status)
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        if self.status.is_none() {
            self.status = waited(self.pidfd.as_fd(), WaitIdOptions::EXITED)?;
        }
        Ok(())
    }
}

/// Waits for a child by its pidfd, as `options` say.
pub(crate) fn waited(pidfd: BorrowedFd<'_>, options: WaitIdOptions) -> io::Result<Option<ExitStatus>> {
    let status = loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd), options) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    Ok(status.map(|status| {
        // As wait(2) has it.
        let core = if status.dumped() { 0x80 } else { 0 };
        let raw = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code << 8,
            (None, signal) => signal.unwrap_or_default() | core,
        };
        ExitStatus::from_raw(raw)
    }))
}

/// Starts a process. Its program runs when this returns.
///
/// # Errors
/// What the host did not allow, in words.
pub(crate) fn spawn(birth: &Birth<'_>) -> io::Result<Child> {
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    let prepared = Prepared::new(birth, &null)?;
    let (told, tells) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let mut pidfd: RawFd = -1;
    let flags = libc::SIGCHLD | libc::CLONE_PIDFD | birth.namespaces.flags();
    // SAFETY: without CLONE_VM the child has a copy of everything, so it goes on behind this call like that
    // of fork(2). It calls nothing that is not safe in the copy of a process with several threads, and never
    // comes back from `go_on`. The kernel writes one descriptor to `pidfd`, before this returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, ptr::null::<u8>(), &raw mut pidfd, 0, 0) };
    match pid {
        ..0 => return Err(io::Error::last_os_error()),
        0 => prepared.go_on(tells.as_raw_fd()),
        _ => {}
    }
    drop(tells);
    // SAFETY: the kernel has just opened it for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let mut child = Child { pid: u32::try_from(pid).unwrap_or_default(), pidfd, status: None };
    let mut word = Vec::new();
    File::from(told).read_to_end(&mut word)?;
    let Some((&step, errno)) = word.split_first() else { return Ok(child) };
    child.wait()?;
    let errno = errno.try_into().map(i32::from_ne_bytes).unwrap_or_default();
    let error = io::Error::from_raw_os_error(errno);
    let what = STEPS.get(usize::from(step)).unwrap_or(&"starting");
    Err(io::Error::new(error.kind(), format!("{what}: {error}")))
}

impl Namespaces {
    fn flags(self) -> libc::c_int {
        match self {
            Self::None => 0,
            Self::Processes => libc::CLONE_NEWPID,
            Self::UsersAndProcesses => libc::CLONE_NEWPID | libc::CLONE_NEWUSER,
        }
    }
}

/// All that the child needs, made beforehand.
struct Prepared {
    program: CString,
    arguments: [*const libc::c_char; 2],
    variables: Vec<*const libc::c_char>,
    streams: [RawFd; 3],
    handed: Vec<RawFd>,
    ids: Option<IdMaps>,
    group: Option<RawFd>,
    /// What `variables` points to.
    _texts: Vec<CString>,
}

/// Inside, the process's user and group are 0, which is nobody outside but whom they were before.
pub(crate) struct IdMaps {
    uid: String,
    gid: String,
}

impl IdMaps {
    pub(crate) fn new() -> Self {
        let line = |id: u32| format!("0 {id} 1\n");
        Self {
            uid: line(rustix::process::geteuid().as_raw()),
            gid: line(rustix::process::getegid().as_raw()),
        }
    }

    /// Writes them for the calling process, which has just been born. Allocates nothing.
    pub(crate) fn write(&self) -> Result<(), libc::c_int> {
        // Else a process could leave a group that is kept from a file (user_namespaces(7)).
        put(c"/proc/self/setgroups", b"deny")?;
        put(c"/proc/self/uid_map", self.uid.as_bytes())?;
        put(c"/proc/self/gid_map", self.gid.as_bytes())
    }
}

impl Prepared {
    fn new(birth: &Birth<'_>, null: &File) -> io::Result<Self> {
        // The child is in another folder.
        let program = CString::new(std::path::absolute(birth.program)?.as_os_str().as_bytes())?;
        let texts = birth.variables.iter().map(|(name, value)| CString::new(format!("{name}={value}")));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let ended = texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]);
        Ok(Self {
            // The text stays where it is when its owner is moved.
            arguments: [program.as_ptr(), ptr::null()],
            variables: ended.collect(),
            program,
            streams: [birth.stdin.as_raw_fd(), null.as_raw_fd(), birth.stderr.as_raw_fd()],
            handed: birth.handed.iter().map(AsRawFd::as_raw_fd).collect(),
            ids: (birth.namespaces == Namespaces::UsersAndProcesses).then(IdMaps::new),
            group: birth.group.map(|group| group.as_raw_fd()),
            _texts: texts,
        })
    }

    /// The child's life until its program begins, or it has told why it does not.
    fn go_on(&self, tells: RawFd) -> ! {
        let Err((step, errno)) = self.try_to_go_on();
        let errno = errno.to_ne_bytes();
        let [one, two, three, four] = errno;
        let word = [step, one, two, three, four];
        // SAFETY: the word is five bytes; who reads it waits for us.
        let _ = unsafe { libc::write(tells, word.as_ptr().cast(), word.len()) };
        // SAFETY: ends this process, and runs nothing of the parent's.
        unsafe { libc::_exit(NOT_STARTED) }
    }

    fn try_to_go_on(&self) -> Result<std::convert::Infallible, (u8, libc::c_int)> {
        if let Some(group) = self.group {
            // SAFETY: one byte of a constant, to what is open. It means whoever writes it.
            let written = unsafe { libc::write(group, c"0".as_ptr().cast(), 1) };
            check(6, if written == 1 { 0 } else { -1 })?;
        }
        if let Some(ids) = &self.ids {
            ids.write().map_err(|errno| (0, errno))?;
        }
        // So that the terminal's Ctrl-C is not for it.
        // SAFETY: given numbers only.
        check(1, unsafe { libc::setpgid(0, 0) })?;
        for (stream, number) in self.streams.iter().zip(0..) {
            // SAFETY: given numbers only. Ours are open, and 3 or more: a Rust program has its own standard
            // streams from the beginning.
            check(2, unsafe { libc::dup2(*stream, number) })?;
        }
        keep_only(&self.handed)?;
        // SAFETY: a text with an end.
        check(4, unsafe { libc::chdir(c"/".as_ptr()) })?;
        as_signals_were_at_first();
        // SAFETY: a text and two lists of texts, each with its end, all of them ours.
        unsafe { libc::execve(self.program.as_ptr(), self.arguments.as_ptr(), self.variables.as_ptr()) };
        Err((5, errno()))
    }
}

/// What is done between birth and program, by number.
const STEPS: [&str; 7] = [
    "mapping user and group into a user namespace",
    "making a process group",
    "handing over standard streams",
    "handing over descriptors",
    "leaving the folder",
    "executing it",
    "entering its control group",
];

/// Keeps from the program whatever this process was born with or has not marked itself, but for `handed`.
fn keep_only(handed: &[RawFd]) -> Result<(), (u8, libc::c_int)> {
    const FIRST: libc::c_uint = 3;
    // A constant of a few bits.
    const ON_EXEC: libc::c_int = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: it is given numbers only, and closes nothing now.
    if unsafe { libc::close_range(FIRST, libc::c_uint::MAX, ON_EXEC) } != 0
        // A kernel before 5.11: all that this process opens itself is marked.
        && ![libc::ENOSYS, libc::EINVAL].contains(&errno())
    {
        return Err((3, errno()));
    }
    for number in handed {
        // SAFETY: given numbers only.
        check(3, unsafe { libc::fcntl(*number, libc::F_SETFD, 0) })?;
    }
    Ok(())
}

/// A program begins with no signal held back, and is ended by a pipe that nobody reads.
fn as_signals_were_at_first() {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: it makes the set, and cannot fail.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set was made just now. It cannot fail either.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
    // SAFETY: given numbers only.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

fn put(path: &std::ffi::CStr, text: &[u8]) -> Result<(), libc::c_int> {
    // SAFETY: a text with an end.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return Err(errno());
    }
    // SAFETY: as many bytes as there are.
    let written = unsafe { libc::write(file, text.as_ptr().cast(), text.len()) };
    let result = if written < 0 { Err(errno()) } else { Ok(()) };
    // SAFETY: opened above, and nobody else's.
    unsafe { libc::close(file) };
    result
}

fn check(step: u8, result: libc::c_int) -> Result<(), (u8, libc::c_int)> {
    if result < 0 { Err((step, errno())) } else { Ok(()) }
}

/// As [`io::Error::last_os_error`], which is not promised to allocate nothing.
pub(crate) fn errno() -> libc::c_int {
    // SAFETY: there is one in each thread.
    let own = unsafe { libc::__errno_location() };
    // SAFETY: this thread's own number, which nobody else looks at.
    unsafe { *own }
}

/// What shells say of a program that cannot be started.
const NOT_STARTED: libc::c_int = 127;

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that leaves something out says so")]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::{
            fd::{AsFd, AsRawFd},
            unix::process::ExitStatusExt,
        },
        path::Path,
    };

    use super::{Birth, Child, Namespaces, spawn};

    fn shell(script: &str, namespaces: Namespaces) -> std::io::Result<(Child, String)> {
        let handed = tempfile::tempfile().unwrap();
        let script = script.replace("HANDED", &handed.as_raw_fd().to_string());
        let (stdin, mut text) = std::io::pipe().unwrap();
        text.write_all(script.as_bytes()).unwrap();
        drop(text);
        let (mut said, stderr) = std::io::pipe().unwrap();
        let variables = [("NAME".to_owned(), "value".to_owned())];
        let mut child = spawn(&Birth {
            program: Path::new("/bin/sh"),
            variables: &variables,
            stdin: stdin.as_fd(),
            stderr: stderr.as_fd(),
            handed: &[handed.into()],
            namespaces,
            group: None,
        })?;
        drop(stderr);
        let mut output = String::new();
        said.read_to_string(&mut output).unwrap();
        child.wait().unwrap();
        Ok((child, output))
    }

    #[test]
    fn it_has_what_it_is_given_and_nothing_else() {
        // Not marked to be closed, under a number that a shell does not use by itself.
        let stray = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 700).unwrap();
        rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
        let script =
            "exec >&2; pwd; echo $NAME $HOME; echo /proc/self/fd/*; test -e /proc/self/fd/HANDED && exit 7";
        let (mut child, output) = shell(script, Namespaces::None).unwrap();
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!((lines[0], lines[1]), ("/", "value"));
        assert!(!lines[2].contains(&format!("fd/{}", stray.as_raw_fd())), "{output}");
        assert_eq!(child.try_wait().unwrap().unwrap().code(), Some(7));
        // As often as one asks; and it is no error to end what has ended.
        assert_eq!(child.try_wait().unwrap().unwrap().code(), Some(7));
        child.kill().unwrap();
    }

    #[test]
    fn it_is_the_first_of_its_namespace_and_our_child() {
        for namespaces in [Namespaces::Processes, Namespaces::UsersAndProcesses] {
            let script = "echo $$ >&2; id -u >&2; kill -9 $$; exit 3";
            match shell(script, namespaces) {
                Ok((mut child, output)) => {
                    assert_eq!(output, "1\n0\n");
                    assert_ne!(child.pid(), 1);
                    // Nobody inside ends the first process.
                    assert_eq!(child.try_wait().unwrap().unwrap().code(), Some(3));
                }
                Err(error) => eprintln!("SKIPPED: {namespaces:?}: {error}"),
            }
        }
    }

    #[test]
    fn it_is_told_why_it_did_not_start() {
        let nothing = File::open("/dev/null").unwrap();
        let error = spawn(&Birth {
            program: Path::new("/nowhere/at-all"),
            variables: &[],
            stdin: nothing.as_fd(),
            stderr: nothing.as_fd(),
            handed: &[],
            namespaces: Namespaces::None,
            group: None,
        });
        let error = error.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        assert!(error.to_string().contains("executing it"), "{error}");
    }

    #[test]
    fn one_that_is_killed_says_by_what() {
        let (stdin, _text) = std::io::pipe().unwrap();
        let mut child = spawn(&Birth {
            program: Path::new("/bin/cat"),
            variables: &[],
            stdin: stdin.as_fd(),
            stderr: std::io::stderr().as_fd(),
            handed: &[],
            namespaces: Namespaces::None,
            group: None,
        })
        .unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(child.try_wait().unwrap().unwrap().signal(), Some(9));
    }
}
