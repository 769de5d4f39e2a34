//! What CPUID tells each vCPU: what KVM supports on this host, made consistent with the number of
//! vCPUs (Intel SDM volume 2A "CPUID"; AMD APM volume 3 appendix E).
//!
//! Topology: one package, one thread a core. APIC id = vCPU number.

use std::io;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const FEATURES: u32 = 0x1;
const CACHES: u32 = 0x4;
const PERFORMANCE: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

const FEATURES_ECX_TSC_DEADLINE: u32 = 1 << 24;
const FEATURES_ECX_HYPERVISOR: u32 = 1 << 31;
const FEATURES_EDX_HTT: u32 = 1 << 28;

/// The entries for vCPU `index` of `count`, from those that KVM supports.
///
/// # Errors
/// They are more than KVM takes.
pub fn for_vcpu(supported: &CpuId, index: u8, count: u8) -> io::Result<CpuId> {
    let (index, count) = (u32::from(index), u32::from(count));
    let mut entries = Vec::with_capacity(supported.as_slice().len() + 2);
    for &entry in supported.as_slice() {
        match (entry.function, entry.index) {
            // How many levels KVM names says nothing: those of the host, or since Linux 6.2 an empty one.
            (TOPOLOGY | TOPOLOGY_V2, 0) => entries.extend(topology(entry.function, index, count)),
            (TOPOLOGY | TOPOLOGY_V2, _) => {}
            _ => entries.push(adjusted(entry, index, count)),
        }
    }
    CpuId::from_entries(&entries).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn adjusted(mut entry: kvm_cpuid_entry2, index: u32, count: u32) -> kvm_cpuid_entry2 {
    match entry.function {
        FEATURES => {
            entry.ebx = entry.ebx & 0xffff | count << 16 | index << 24;
            entry.ecx |= FEATURES_ECX_TSC_DEADLINE | FEATURES_ECX_HYPERVISOR;
            entry.edx = with_bit(entry.edx, FEATURES_EDX_HTT, count > 1);
        }
        CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (count - 1) << 26;
        }
        // No performance counters: what a guest would count with them is the host's business, and
        // probing counters that cannot work costs exits at every boot.
        PERFORMANCE => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        AMD_SIZES => entry.ecx = entry.ecx & !0xf0ff | id_bits(count) << 12 | (count - 1),
        AMD_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
        }
        AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (index, index, 0),
        _ => {}
    }
    entry
}

/// Leaf 0xb and 0x1f: level 0 is the thread (one a core), level 1 the core (all in one package). KVM
/// answers for the levels above that there are none.
fn topology(function: u32, id: u32, count: u32) -> [kvm_cpuid_entry2; 2] {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let level = |index, kind, shift, processors| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        edx: id,
        ..Default::default()
    };
    [level(0, THREAD, 0, 1), level(1, CORE, id_bits(count), count)]
}

/// How many bits of an APIC id number the vCPUs.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn with_bit(value: u32, bit: u32, set: bool) -> u32 {
    if set { value | bit } else { value & !bit }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{CpuId, kvm_cpuid_entry2};

    use super::for_vcpu;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, ..Default::default() }
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id_in_one_package() {
        // What KVM names of the topology: nothing but the leaf, or the host's three levels.
        for levels in [1, 3] {
            let mut supported = vec![entry(1, 0)];
            supported.extend((0..levels).map(|level| entry(0xb, level)));
            let supported = CpuId::from_entries(&supported).unwrap();
            for index in 0..3 {
                let cpuid = for_vcpu(&supported, index, 3).unwrap();
                let [features, thread, core] = cpuid.as_slice() else { panic!() };
                assert_eq!(features.ebx, 3 << 16 | u32::from(index) << 24);
                assert_ne!(features.edx & 1 << 28, 0);
                let index = u32::from(index);
                assert_eq!((thread.index, thread.flags, core.index, core.flags), (0, 1, 1, 1));
                assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (0, 1, 0x100, index));
                assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, 0x201, index));
            }
        }
    }

    #[test]
    fn one_vcpu_is_not_said_to_have_siblings() {
        let mut features = entry(1, 0);
        features.edx = 1 << 28;
        let cpuid = for_vcpu(&CpuId::from_entries(&[features]).unwrap(), 0, 1).unwrap();
        assert_eq!(cpuid.as_slice()[0].edx, 0);
    }
}
