//! The registers of a vCPU.

use std::io;

use ec2vmm_devices::state::Hex;
use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{
    CpuId, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::{Abi, Elapsed, msrs};
use crate::vm::KvmError;

/// One vCPU.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VcpuState {
    /// What the guest was told of its processor.
    pub cpuid: Vec<CpuidEntry>,
    /// Frequency of the time stamp counter, kHz, where KVM tells it.
    pub tsc_khz: Option<u32>,
    regs: Abi<kvm_regs>,
    sregs: Abi<kvm_sregs>,
    mp_state: Abi<kvm_mp_state>,
    events: Abi<kvm_vcpu_events>,
    debug_regs: Abi<kvm_debugregs>,
    lapic: Abi<kvm_lapic_state>,
    xcrs: Abi<kvm_xcrs>,
    /// The XSAVE area, without the zeroes at its end.
    xsave: Hex,
    /// Of a guest that is a hypervisor itself.
    #[serde(default)]
    nested: Option<Hex>,
    msrs: Vec<(u32, u64)>,
}

/// Function, index, flags, EAX, EBX, ECX, EDX.
pub type CpuidEntry = [u32; 7];

/// What KVM's table says, as it is saved.
pub fn cpuid_of(cpuid: &CpuId) -> Vec<CpuidEntry> {
    let entry = |entry: &kvm_cpuid_entry2| {
        let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, .. } = *entry;
        [function, index, flags, eax, ebx, ecx, edx]
    };
    cpuid.as_slice().iter().map(entry).collect()
}

impl VcpuState {
    /// Of a vCPU that does not run, of whose last exit nothing is left to be done, and which was given this
    /// CPUID. (KVM's own table changes with the guest's registers.)
    ///
    /// # Errors
    /// KVM refused.
    pub fn save(kvm: &Kvm, vm: &VmFd, vcpu: &VcpuFd, cpuid: Vec<CpuidEntry>) -> Result<Self, KvmError> {
        // Before all else: reading it settles what is under way in the others.
        let mp_state = vcpu.get_mp_state().map_err(KvmError::of("reading whether a vCPU runs"))?;
        Ok(Self {
            cpuid,
            tsc_khz: vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0),
            mp_state: Abi(mp_state),
            regs: Abi(vcpu.get_regs().map_err(KvmError::of("reading registers"))?),
            sregs: Abi(vcpu.get_sregs().map_err(KvmError::of("reading system registers"))?),
            debug_regs: Abi(vcpu.get_debug_regs().map_err(KvmError::of("reading debug registers"))?),
            lapic: Abi(vcpu.get_lapic().map_err(KvmError::of("reading a local APIC"))?),
            xcrs: Abi(vcpu.get_xcrs().map_err(KvmError::of("reading XCRs"))?),
            xsave: save_xsave(vm, vcpu)?,
            nested: save_nested(kvm, vcpu)?,
            msrs: msrs::save(kvm, vcpu)?,
            events: Abi(vcpu.get_vcpu_events().map_err(KvmError::of("reading pending events"))?),
        })
    }

    /// Makes a new vCPU what this one was, its counters advanced by what has passed.
    ///
    /// # Errors
    /// KVM refused: the state is none that this host's processors can be in.
    pub fn restore(&self, kvm: &Kvm, vm: &VmFd, vcpu: &VcpuFd, elapsed: Elapsed) -> Result<(), KvmError> {
        // CPUID first, since it says which of the others there are; the local APIC after the system
        // registers, which say where it is and in which mode; events last, since others clear them.
        let cpuid = self.cpuid_table()?;
        vcpu.set_cpuid2(&cpuid).map_err(KvmError::of("setting CPUID"))?;
        self.restore_tsc_khz(kvm, vcpu)?;
        vcpu.set_mp_state(self.mp_state.0).map_err(KvmError::of("setting whether a vCPU runs"))?;
        vcpu.set_regs(&self.regs.0).map_err(KvmError::of("setting registers"))?;
        vcpu.set_sregs(&self.sregs.0).map_err(KvmError::of("setting system registers"))?;
        self.restore_xsave(vm, vcpu)?;
        vcpu.set_xcrs(&self.xcrs.0).map_err(KvmError::of("setting XCRs"))?;
        vcpu.set_debug_regs(&self.debug_regs.0).map_err(KvmError::of("setting debug registers"))?;
        vcpu.set_lapic(&self.lapic.0).map_err(KvmError::of("setting a local APIC"))?;
        let tsc_khz = self.tsc_khz.or_else(|| vcpu.get_tsc_khz().ok());
        msrs::restore(vcpu, &self.msrs, elapsed, tsc_khz)?;
        self.restore_nested(vcpu)?;
        vcpu.set_vcpu_events(&self.events.0).map_err(KvmError::of("setting pending events"))
    }

    fn cpuid_table(&self) -> Result<CpuId, KvmError> {
        let entry = |&[function, index, flags, eax, ebx, ecx, edx]: &CpuidEntry| kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        let entries: Vec<_> = self.cpuid.iter().map(entry).collect();
        CpuId::from_entries(&entries).map_err(|_| senseless("setting CPUID", "more entries than KVM takes"))
    }

    /// A counter of another frequency is made to count as it did, where the processor can.
    fn restore_tsc_khz(&self, kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let (Some(then), Ok(now)) = (self.tsc_khz, vcpu.get_tsc_khz()) else { return Ok(()) };
        if then.abs_diff(now) <= now / TSC_TOLERANCE {
            return Ok(());
        }
        if !kvm.check_extension(Cap::TscControl) {
            let text = format!("it counted at {then} kHz, this host's counts at {now} and cannot be scaled");
            return Err(senseless("setting the frequency of the time stamp counter", text));
        }
        vcpu.set_tsc_khz(then).map_err(KvmError::of("setting the frequency of the time stamp counter"))
    }

    fn restore_xsave(&self, vm: &VmFd, vcpu: &VcpuFd) -> Result<(), KvmError> {
        const WHAT: &str = "setting the XSAVE area";
        let mut xsave = new_xsave(vm, WHAT)?;
        let Hex(saved) = &self.xsave;
        let (first, rest) = saved.split_at(saved.len().min(XSAVE_BYTES));
        // SAFETY: the length stays as it is.
        let fixed = unsafe { xsave.as_mut_fam_struct() };
        let region = fixed.xsave.region.as_mut_bytes();
        region.iter_mut().zip(first).for_each(|(to, from)| *to = *from);
        let extra = xsave.as_mut_slice().as_mut_bytes();
        let Some(extra) = extra.get_mut(..rest.len()) else {
            return Err(senseless(WHAT, "it is larger than that of this host's processors"));
        };
        extra.copy_from_slice(rest);
        // SAFETY: `new_xsave` has made it as large as KVM says that it reads.
        unsafe { vcpu.set_xsave2(&xsave) }.map_err(KvmError::of(WHAT))
    }

    fn restore_nested(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        const WHAT: &str = "setting the state of a guest's guests";
        let Some(Hex(saved)) = &self.nested else { return Ok(()) };
        let mut bytes = saved.clone();
        if bytes.len() > size_of::<KvmNestedStateBuffer>() {
            return Err(senseless(WHAT, "it is larger than KVM's"));
        }
        let len = bytes.len();
        bytes.resize(size_of::<KvmNestedStateBuffer>(), 0);
        let mut state = KvmNestedStateBuffer::read_from_bytes(&bytes)
            .map_err(|_| senseless(WHAT, "it is not as large as KVM's"))?;
        // KVM believes this, and reads no more than there is.
        state.size = u32::try_from(len).unwrap_or(0);
        vcpu.set_nested_state(&state).map_err(KvmError::of(WHAT))
    }
}

fn save_xsave(vm: &VmFd, vcpu: &VcpuFd) -> Result<Hex, KvmError> {
    const WHAT: &str = "reading the XSAVE area";
    let mut xsave = new_xsave(vm, WHAT)?;
    if xsave.as_slice().is_empty() {
        // SAFETY: the length stays as it is.
        let fixed = unsafe { xsave.as_mut_fam_struct() };
        fixed.xsave = vcpu.get_xsave().map_err(KvmError::of(WHAT))?;
    } else {
        // SAFETY: `new_xsave` has made it as large as KVM says that it writes.
        unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(KvmError::of(WHAT))?;
    }
    let mut bytes = xsave.as_fam_struct_ref().xsave.region.as_bytes().to_vec();
    bytes.extend_from_slice(xsave.as_slice().as_bytes());
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(used);
    Ok(Hex(bytes))
}

/// As large as KVM's, zeroed.
fn new_xsave(vm: &VmFd, what: &'static str) -> Result<Xsave, KvmError> {
    let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    let words = bytes.saturating_sub(XSAVE_BYTES).div_ceil(size_of::<u32>());
    Xsave::new(words).map_err(|_| senseless(what, "it is larger than can be"))
}

/// Nothing for a guest that is no hypervisor.
fn save_nested(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Option<Hex>, KvmError> {
    if !kvm.check_extension(Cap::NestedState) {
        return Ok(None);
    }
    let mut state = KvmNestedStateBuffer::empty();
    vcpu.nested_state(&mut state).map_err(KvmError::of("reading the state of a guest's guests"))?;
    let len = usize::try_from(state.size).unwrap_or(0);
    Ok(state.as_bytes().get(..len).map(|bytes| Hex(bytes.to_vec())))
}

fn senseless(what: &'static str, text: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> KvmError {
    KvmError { what, source: io::Error::new(io::ErrorKind::InvalidData, text) }
}

/// What every processor has of an XSAVE area, as KVM passes it.
const XSAVE_BYTES: usize = 4096;
/// Frequencies that differ by less than one part in so many are the same: 250 ppm, as Linux and NTP bear.
const TSC_TOLERANCE: u32 = 4000;
