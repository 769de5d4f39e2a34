//! The end of a machine process that its sandbox has killed, in words.

use std::{
    fs::OpenOptions,
    io::Read,
    os::unix::{fs::OpenOptionsExt, process::ExitStatusExt},
    process::ExitStatus,
};

use ec2vmm_vmm_api::{Failure, FailureKind};

use crate::system_calls;

/// What people are told, if it was the sandbox that killed this process.
pub fn failure(pid: u32, status: ExitStatus) -> Option<Failure> {
    (status.signal() == Some(SIGSYS))
        .then(|| told(read_kernel_log(|record| forbidden_call(record, pid, None)).as_deref()))
}

/// The same of a process that is gone, where nobody can say how it ended. The kernel's log must tell it, of this
/// number and this user id, which no other process has had together but an earlier machine that was killed too.
pub(crate) fn of_unknown_end(pid: u32, uid: u32) -> Option<Failure> {
    let call = read_kernel_log(|record| forbidden_call(record, pid, Some(uid)))?;
    Some(told(Some(&call)))
}

fn told(call: Option<&str>) -> Failure {
    let what = match call {
        Some(call) => format!("it made the system call {call}"),
        None => "it made a system call".to_owned(),
    };
    Failure {
        kind: FailureKind::ForbiddenCall,
        message: format!("the machine process was killed by its sandbox: {what}, which is not allowed"),
        hint: Some(match call {
            Some(_) => {
                "a guest that has taken over its machine process does such things; so does a fault of \
                        ours: please report it"
                    .into()
            }
            None => "the host's kernel log may name the call: `journalctl -k | grep type=1326`".into(),
        }),
    }
}

/// What the last record says that `pick` picks, as far as this user may read them and they are kept.
fn read_kernel_log(pick: impl Fn(&str) -> Option<String>) -> Option<String> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut log = OpenOptions::new().read(true).custom_flags(nonblocking).open("/dev/kmsg").ok()?;
    let mut record = vec![0; RECORD_BYTES_MAX];
    let mut picked = None;
    for _ in 0..RECORDS_MAX {
        match log.read(&mut record) {
            Ok(len) => {
                let text = record.get(..len).unwrap_or_default();
                picked = pick(&String::from_utf8_lossy(text)).or(picked);
            }
            // The next one was overwritten before it was read; the one after it is there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // That was the last.
            Err(_) => break,
        }
    }
    picked
}

/// Of `audit: type=1326 audit(...): ... pid=4711 comm="vcpu0" exe="..." sig=31 ... syscall=41 ...`, which the
/// kernel writes when a filter kills (audit_seccomp).
fn forbidden_call(record: &str, pid: u32, uid: Option<u32>) -> Option<String> {
    let field = |name: &str| record.split_ascii_whitespace().find_map(|word| word.strip_prefix(name));
    if uid.is_some_and(|uid| field("uid=") != Some(uid.to_string().as_str())) {
        return None;
    }
    if !record.contains("type=1326 ") || field("sig=") != Some("31") {
        return None;
    }
    if field("pid=")?.parse::<u32>().ok()? != pid {
        return None;
    }
    let number: u32 = field("syscall=")?.parse().ok()?;
    let name = system_calls::name(number).unwrap_or("of unknown name");
    let thread = field("comm=").map(|thread| format!(" in the thread {}", thread.trim_matches('"')));
    Some(format!("{name} ({number}){}", thread.unwrap_or_default()))
}

const SIGSYS: i32 = 31;
/// The kernel's own limit.
const RECORD_BYTES_MAX: usize = 8 * 1024;
/// More than a kernel keeps.
const RECORDS_MAX: usize = 200_000;

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    use super::{failure, forbidden_call};

    #[test]
    fn the_kernel_names_the_call() {
        let record = "5,1284,1001320282,-;audit: type=1326 audit(1795970208.843:7): auid=4294967295 uid=0 gid=0 \
                      ses=4294967295 pid=15237 comm=\"vcpu0\" exe=\"/usr/bin/ec2vmm-vmm\" sig=31 arch=c000003e \
                      syscall=41 compat=0 ip=0x7f6751630f60 code=0x80000000";
        let call = Some("socket (41) in the thread vcpu0");
        assert_eq!(forbidden_call(record, 15237, None).as_deref(), call);
        assert_eq!(forbidden_call(record, 1523, None), None);
        // `auid` and `gid` are others.
        let of = |uid: u32| record.replace(" uid=0", &format!(" uid={uid}"));
        assert_eq!(forbidden_call(&of(70_000), 15237, Some(70_000)).as_deref(), call);
        for other in [0, 7_000, 4_294_967_295] {
            assert_eq!(forbidden_call(&of(70_000), 15237, Some(other)), None);
        }
        assert_eq!(forbidden_call("6,1,2,-;eth0: link up", 15237, None), None);
        assert_eq!(forbidden_call("type=1326 pid=x sig=31", 15237, None), None);
    }

    #[test]
    fn other_ends_are_no_violation() {
        assert!(failure(1, ExitStatus::from_raw(9)).is_none());
        assert!(failure(1, ExitStatus::from_raw(31 << 8)).is_none());
        let failure = failure(u32::MAX, ExitStatus::from_raw(31 | 0x80)).unwrap();
        assert!(failure.message.contains("it made a system call, which is not allowed"), "{failure:?}");
    }
}
