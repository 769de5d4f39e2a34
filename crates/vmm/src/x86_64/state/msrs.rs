//! Model-specific registers of a vCPU: all that KVM lists, and those that it has but does not list.

use std::{collections::BTreeSet, io};

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::Elapsed;
use crate::vm::KvmError;

/// Numbers and values. Those that cannot be read are left out.
///
/// # Errors
/// KVM refused.
pub(super) fn save(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, KvmError> {
    let list = kvm.get_msr_index_list().map_err(KvmError::of("listing model-specific registers"))?;
    let indices: BTreeSet<u32> =
        list.as_slice().iter().copied().chain(UNLISTED.iter().flat_map(Clone::clone)).collect();
    let mut left: Vec<kvm_msr_entry> =
        indices.into_iter().map(|index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut saved = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let mut msrs = wrap(&left)?;
        // KVM stops at the first that it cannot read.
        let count = vcpu.get_msrs(&mut msrs).map_err(KvmError::of("reading model-specific registers"))?;
        saved.extend(msrs.as_slice().iter().take(count).map(|entry| (entry.index, entry.data)));
        left.drain(..left.len().min(count + 1));
    }
    Ok(saved)
}

/// As they were, but for the time stamp counter, which has gone on.
///
/// # Errors
/// KVM does not take a value, and the register does not have it anyway.
pub(super) fn restore(
    vcpu: &VcpuFd,
    saved: &[(u32, u64)],
    elapsed: Elapsed,
    tsc_khz: Option<u32>,
) -> Result<(), KvmError> {
    let find = |wanted| saved.iter().find(|(index, _)| *index == wanted).map(|(_, value)| *value);
    let tsc = find(TSC).map(|tsc| tsc_khz.map_or(tsc, |khz| elapsed.advance_counter(tsc, khz)));
    let entry = |(index, data)| kvm_msr_entry { index, data, ..Default::default() };
    let mut left: Vec<_> = saved
        .iter()
        .copied()
        .filter(|(index, _)| *index != TSC_DEADLINE)
        .map(|(index, value)| entry((index, if index == TSC { tsc.unwrap_or(value) } else { value })))
        .collect();
    // The timer counts on the counter, which must be there first. One that has run out reads as 0, and
    // its interrupt may not have been delivered yet: it comes once more, which every guest bears.
    left.extend(find(TSC_DEADLINE).map(|deadline| {
        let deadline = if deadline == 0 { tsc.unwrap_or(0) } else { deadline };
        entry((TSC_DEADLINE, deadline))
    }));
    while !left.is_empty() {
        let msrs = wrap(&left)?;
        let count = vcpu.set_msrs(&msrs).map_err(KvmError::of("setting model-specific registers"))?;
        if let Some(refused) = left.get(count) {
            check_has(vcpu, *refused)?;
        }
        left.drain(..left.len().min(count + 1));
    }
    Ok(())
}

/// One that cannot be set is as good as set where it has the value.
fn check_has(vcpu: &VcpuFd, wanted: kvm_msr_entry) -> Result<(), KvmError> {
    let mut here = wrap(&[kvm_msr_entry { index: wanted.index, ..Default::default() }])?;
    let read = vcpu.get_msrs(&mut here).is_ok_and(|count| count == 1);
    let value = here.as_slice().first().filter(|_| read).map_or(0, |entry| entry.data);
    if value == wanted.data {
        return Ok(());
    }
    let text = format!(
        "register {:#x} had {:#x}, and KVM on this host leaves it at {value:#x}",
        wanted.index, wanted.data
    );
    Err(KvmError { what: "setting a model-specific register", source: io::Error::other(text) })
}

fn wrap(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    Msrs::from_entries(entries).map_err(|_| KvmError {
        what: "passing model-specific registers",
        source: io::ErrorKind::InvalidInput.into(),
    })
}

const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;
/// The memory type range registers (Intel SDM 3A section 13.11), which KVM has without listing them.
const UNLISTED: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];
