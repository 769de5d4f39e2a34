//! What machine processes of tests do, here and in other crates.

#![allow(unsafe_code, reason = "a filter of system calls")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests only")]

/// Ends this process as its sandbox would: under a filter that kills it for asking for its parent, it does so.
///
/// # Panics
/// The kernel takes no filter, or lets it live.
pub fn die_by_a_filter() -> ! {
    // Load the call's number; is it getppid? kill the process; else allow.
    let word = |code, jf, k: i64| libc::sock_filter { code, jt: 0, jf, k: u32::try_from(k).unwrap() };
    let words = [
        word(0x20, 0, 0),
        word(0x15, 1, libc::SYS_getppid),
        word(0x06, 0, 0x8000_0000),
        word(0x06, 0, 0x7fff_0000),
    ];
    let program = libc::sock_fprog { len: 4, filter: words.as_ptr().cast_mut() };
    rustix::thread::set_no_new_privs(true).unwrap();
    // SAFETY: the program is four instructions long, and outlives the call.
    assert_eq!(unsafe { libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program) }, 0);
    // SAFETY: asks for a number.
    unsafe { libc::getppid() };
    panic!("it was not killed")
}
