//! What CPUID tells each vCPU: what KVM supports on this host, made consistent with the number of
//! vCPUs (Intel SDM volume 2A "CPUID"; AMD APM volume 3 appendix E).
//!
//! Topology: one package, one thread a core. APIC id = vCPU number.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

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
pub fn for_vcpu(supported: &CpuId, index: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        adjust(entry, u32::from(index), u32::from(count));
    }
    cpuid
}

fn adjust(entry: &mut kvm_cpuid_entry2, index: u32, count: u32) {
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
        TOPOLOGY | TOPOLOGY_V2 => topology(entry, index, count),
        AMD_SIZES => entry.ecx = entry.ecx & !0xf0ff | id_bits(count) << 12 | (count - 1),
        AMD_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
        }
        AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (index, index, 0),
        _ => {}
    }
}

/// Leaf 0xb and 0x1f: level 0 is the thread (one a core), level 1 the core (all in one package).
fn topology(entry: &mut kvm_cpuid_entry2, index: u32, count: u32) {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let (shift, processors, kind) = match entry.index {
        0 => (0, 1, THREAD),
        1 => (id_bits(count), count, CORE),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = processors;
    entry.ecx = entry.index | kind << 8;
    entry.edx = index;
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
        let supported = CpuId::from_entries(&[entry(1, 0), entry(0xb, 0), entry(0xb, 1)]).unwrap();
        for index in 0..3 {
            let cpuid = for_vcpu(&supported, index, 3);
            let [features, thread, core] = cpuid.as_slice() else { panic!() };
            assert_eq!(features.ebx, 3 << 16 | u32::from(index) << 24);
            assert_ne!(features.edx & 1 << 28, 0);
            assert_eq!((thread.eax, thread.ebx, thread.edx), (0, 1, u32::from(index)));
            assert_eq!((core.eax, core.ebx, core.edx), (2, 3, u32::from(index)));
        }
    }

    #[test]
    fn one_vcpu_is_not_said_to_have_siblings() {
        let mut features = entry(1, 0);
        features.edx = 1 << 28;
        let cpuid = for_vcpu(&CpuId::from_entries(&[features]).unwrap(), 0, 1);
        assert_eq!(cpuid.as_slice()[0].edx, 0);
    }
}
