//! What belongs to no vCPU: the interrupt controllers and the clock that guests read.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::{Abi, Elapsed};
use crate::vm::KvmError;

/// A VM without its vCPUs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VmState {
    pic_master: Abi<kvm_irqchip>,
    pic_slave: Abi<kvm_irqchip>,
    ioapic: Abi<kvm_irqchip>,
    /// kvm-clock, nanoseconds.
    clock_ns: u64,
}

impl VmState {
    /// Of a VM whose vCPUs do not run.
    ///
    /// # Errors
    /// KVM refused.
    pub fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(KvmError::of("reading an interrupt controller"))?;
            Ok(Abi(chip))
        };
        Ok(Self {
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
            clock_ns: vm.get_clock().map_err(KvmError::of("reading kvm-clock"))?.clock,
        })
    }

    /// As it was, the clock advanced by what has passed. Before any vCPU runs.
    ///
    /// # Errors
    /// KVM refused.
    pub fn restore(&self, vm: &VmFd, elapsed: Elapsed) -> Result<(), KvmError> {
        let chips = [
            (KVM_IRQCHIP_PIC_MASTER, self.pic_master.0),
            (KVM_IRQCHIP_PIC_SLAVE, self.pic_slave.0),
            (KVM_IRQCHIP_IOAPIC, self.ioapic.0),
        ];
        for (chip_id, saved) in chips {
            let chip = kvm_irqchip { chip_id, ..saved };
            vm.set_irqchip(&chip).map_err(KvmError::of("setting an interrupt controller"))?;
        }
        let clock = kvm_clock_data { clock: elapsed.advance_ns(self.clock_ns), ..Default::default() };
        vm.set_clock(&clock).map_err(KvmError::of("setting kvm-clock"))
    }
}
