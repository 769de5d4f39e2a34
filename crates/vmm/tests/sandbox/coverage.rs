//! Every rule is needed: machines and parts of them are watched while they do all that they do, and each rule
//! is to be used under each filter that has it. A rule that nothing uses any more is to be deleted; a call
//! that no rule allows is told with its arguments, where the filter itself would only kill.
//!
//! It watches by ptrace(2), which sees a call before the filter does, with all its arguments, and needs
//! nothing of the filter: what is tested is the very filter that is shipped.

use std::{collections::BTreeSet, path::Path, process::Command};

use ec2vmm_vmm::{
    block::Rings,
    sandbox::{Thread, rules::RULES},
};

use crate::{born, scenarios, tracer::Call};

/// What was seen.
#[derive(Default)]
pub(crate) struct Coverage {
    used: BTreeSet<(usize, Thread)>,
    /// What no rule allows.
    pub(crate) refused: BTreeSet<String>,
}

impl Coverage {
    pub(crate) fn see(&mut self, call: &Call) {
        let Call { filters, number, arguments, thread } = call;
        if *number == libc::SYS_clone3 {
            return;
        }
        for filter in filters {
            let mut rules = RULES.iter().enumerate().filter(|(_, rule)| rule.threads.contains(filter));
            match rules.find(|(_, rule)| rule.allows(*number, arguments)) {
                Some((index, _)) => {
                    self.used.insert((index, *filter));
                }
                None => {
                    self.refused.insert(format!("{filter:?}: call {number} in {thread}: {arguments:x?}"));
                }
            }
        }
    }
}

#[test]
fn every_rule_is_needed() {
    if !born::is_possible() {
        return;
    }
    let has_rings = !Rings::make(1).is_empty();
    if !Path::new("/dev/net/tun").exists() || !has_rings || !born::has_userfaultfd() {
        return eprintln!(
            "SKIPPED: this kernel has no taps, no io_uring or no userfaultfd, so some rules are not needed here"
        );
    }
    // The parts are run in copies of this process, which must have one heap, as a machine process has.
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "--ignored", "--nocapture", "coverage::with_one_heap"]);
    let output = again.env("GLIBC_TUNABLES", "glibc.malloc.arena_max=1").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
#[ignore = "run by the test above"]
fn with_one_heap() {
    let mut coverage = Coverage::default();
    scenarios::run_all(&mut coverage);
    let rules = RULES.iter().enumerate();
    let pairs = rules.flat_map(|(index, rule)| rule.threads.iter().map(move |thread| (index, *thread)));
    let unused = pairs.filter(|pair| !coverage.used.contains(pair) && !is_excused(pair.0));
    let unused =
        unused.map(|(index, thread)| format!("{} {:?} by {thread:?}", RULES[index].name, RULES[index].when));
    let unused: Vec<String> = unused.collect();
    assert!(coverage.refused.is_empty(), "refused: {:#?}", coverage.refused);
    assert!(unused.is_empty(), "nothing needs {unused:#?}");
}

/// In a release build the standard library does not look whether what it closes is open; and some KVMs are
/// asked what others are not.
fn is_excused(index: usize) -> bool {
    let why = RULES[index].why;
    why.starts_with("other hosts") || why.starts_with("debug builds") && !cfg!(debug_assertions)
}
