//! Makes filters of system calls out of [`super::rules`], and installs them.
//!
//! Invariant: filters add up. The main thread's holds for the whole process, whose threads all come from
//! it; a thread of another kind then takes the most of what is left from itself. Whatever no rule allows
//! kills the process, and the kernel writes to its log which call it was.

use std::{collections::BTreeMap, sync::OnceLock};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::rules::{RULES, Rule, Thread, When};

/// A filter cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The rules cannot be expressed.
    #[error("the rules make no filter")]
    Compile(#[source] BackendError),
    /// The kernel refused it.
    #[error("the kernel refuses the filter")]
    Install(#[source] seccompiler::Error),
}

/// The programs of threads that are yet to come; there are some once the process is shut in.
static PROGRAMS: OnceLock<Programs> = OnceLock::new();

struct Programs {
    vcpu: BpfProgram,
    /// Made when a machine that is restored needs it.
    pager: OnceLock<Result<BpfProgram, FilterError>>,
    /// Made when the first snapshot is taken.
    snapshot: OnceLock<Result<BpfProgram, FilterError>>,
    /// Made when the first disk needs it: most are served by io_uring.
    disk: OnceLock<Result<BpfProgram, FilterError>>,
}

/// Filters what this thread and all that come from it may do.
pub(super) fn enter() -> Result<(), FilterError> {
    let main = compile(Thread::Main)?;
    let programs = Programs {
        vcpu: compile(Thread::Vcpu)?,
        disk: OnceLock::new(),
        pager: OnceLock::new(),
        snapshot: OnceLock::new(),
    };
    // It is entered once; a second time could only add the same again.
    let _ = PROGRAMS.set(programs);
    seccompiler::apply_filter(&main).map_err(FilterError::Install)
}

/// Takes from the calling thread, which is of this kind, what the process may do and the thread need not.
/// Does nothing in a process that is not shut in.
///
/// A thread that cannot be shut in must not run: the process then ends.
pub fn narrow(thread: Thread) {
    let Some(programs) = PROGRAMS.get() else { return };
    let narrowed = match thread {
        Thread::Main => return,
        Thread::Vcpu => install(&programs.vcpu),
        Thread::Disk => install_made(&programs.disk, thread),
        Thread::Pager => install_made(&programs.pager, thread),
        Thread::Snapshot => install_made(&programs.snapshot, thread),
    };
    if let Err(error) = narrowed {
        log::error!("filtering the system calls of a thread: {error}");
        std::process::abort();
    }
}

fn install_made(program: &OnceLock<Result<BpfProgram, FilterError>>, thread: Thread) -> Result<(), String> {
    match program.get_or_init(|| compile(thread)) {
        Ok(program) => install(program),
        Err(error) => Err(error.to_string()),
    }
}

fn install(program: &BpfProgram) -> Result<(), String> {
    seccompiler::apply_filter(program).map_err(|error| error.to_string())
}

fn compile(thread: Thread) -> Result<BpfProgram, FilterError> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in RULES.iter().filter(|rule| rule.threads.contains(&thread)) {
        let alternatives = calls.entry(rule.call).or_default();
        // Without conditions a call is always allowed: that is what an empty list means.
        alternatives.extend(conditions(rule).map_err(FilterError::Compile)?);
    }
    let (allowed, else_) = (SeccompAction::Allow, SeccompAction::KillProcess);
    let filter =
        SeccompFilter::new(calls, else_, allowed, TargetArch::x86_64).map_err(FilterError::Compile)?;
    let filter = BpfProgram::try_from(filter).map_err(FilterError::Compile)?;
    Ok(NO_CLONE3.into_iter().chain(filter).collect())
}

fn conditions(rule: &Rule) -> Result<Option<SeccompRule>, BackendError> {
    let conditions = rule.when.iter().map(|when| {
        let (arg, len, operator, value) = match *when {
            When::Int(arg, value) => (arg, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value)),
            When::Long(arg, value) => (arg, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value),
            When::Lacks(arg, bits) => (arg, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), 0),
        };
        SeccompCondition::new(arg, len, operator, value)
    });
    let conditions = conditions.collect::<Result<Vec<_>, _>>()?;
    if conditions.is_empty() { Ok(None) } else { SeccompRule::new(conditions).map(Some) }
}

/// What `clone3` is asked for lies in memory, where no filter can look. The C library takes the answer that
/// there is no such call, and calls `clone`.
const NO_CLONE3: [sock_filter; 3] = [
    // Load the number of the call, which is the first word.
    sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
    // Is it clone3? Else go on behind the answer.
    sock_filter { code: 0x15, jt: 0, jf: 1, k: CLONE3 },
    sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | ENOSYS },
];
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "435")]
const CLONE3: u32 = libc::SYS_clone3 as u32;
#[allow(clippy::cast_sign_loss, reason = "38")]
const ENOSYS: u32 = libc::ENOSYS as u32;
